//! Blobs that are there.

use corten_types::{Digest, ErrorClass, Labels};

use crate::{Lab, ctx, in_namespace, text};

#[tokio::test]
async fn blobs_are_read_where_they_are_known() {
    let lab = Lab::new();
    let digest = lab.put(&ctx(), b"0123456789").await;
    let blob = lab.store.reader(&ctx(), &digest).unwrap();
    let mut buffer = [0; 4];
    assert_eq!((blob.size(), blob.read_at(&mut buffer, 8).unwrap()), (10, 2));
    assert_eq!(&buffer[..2], b"89");
    assert_eq!(blob.read_at(&mut buffer, 10).unwrap(), 0);
    let missing = format!("content digest {digest}: not found");
    assert_eq!(text(lab.store.reader(&in_namespace("other"), &digest)), missing);
    assert_eq!(text(lab.store.read(&in_namespace("other"), &digest, 10)), missing);
    assert_eq!(lab.store.read(&ctx(), &digest, 10).unwrap(), b"0123456789");
    assert_eq!(lab.store.read(&ctx(), &digest, 9).unwrap_err().class(), ErrorClass::ResourceExhausted);
}

#[tokio::test]
async fn parts_of_a_blob_come_whole_or_are_refused() {
    let lab = Lab::new();
    let digest = lab.put(&ctx(), b"0123456789").await;
    let blob = lab.store.reader(&ctx(), &digest).unwrap();
    let mut data = *b"> ____";
    // What was just written is in memory, unless the file system cannot say so.
    assert!([0, 3].contains(&blob.read_cached(&mut data[2..5], 2)));
    blob.read_exact_at(&mut data[2..5], 2).unwrap();
    blob.read_exact_at(&mut data[5..], 9).unwrap();
    assert_eq!(&data, b"> 2349");
    assert_eq!(blob.read_exact_at(&mut data[..3], 8).unwrap_err().class(), ErrorClass::DataLoss);
}

#[tokio::test]
async fn a_reader_goes_on_while_the_blob_is_removed() {
    let lab = Lab::new();
    let digest = lab.put(&ctx(), b"data").await;
    let blob = lab.store.reader(&ctx(), &digest).unwrap();
    lab.store.delete(&ctx(), &digest).await.unwrap();
    lab.collector().trigger().await.unwrap();
    assert!(!lab.blob_file(&digest).exists());
    let mut buffer = [0; 4];
    assert_eq!(blob.read_at(&mut buffer, 0).unwrap(), 4);
    assert_eq!(&buffer, b"data");
}

#[tokio::test]
async fn infos_are_updated_listed_and_filtered() {
    let lab = Lab::new();
    let mut digests = Vec::new();
    for n in 0..5 {
        digests.push(lab.put(&ctx(), &[n]).await);
    }
    digests.sort_by_key(|digest| digest.as_str().to_owned());
    let listed: Vec<Digest> =
        lab.store.list(&ctx(), &[]).unwrap().into_iter().map(|blob| blob.digest).collect();
    assert_eq!(listed, digests);
    let labels = Labels::from([("a.b".into(), "1".into())]);
    let paths = ["labels.a.b".to_owned()];
    lab.store.update(&ctx(), &digests[2], labels, &paths).await.unwrap();
    let found = lab.store.list(&ctx(), &["labels.a.b==1".into()]).unwrap();
    assert_eq!((found.len(), &found[0].digest), (1, &digests[2]));
}

#[tokio::test]
async fn a_blob_that_is_missing_or_cut_short_on_disk_is_written_anew() {
    let lab = Lab::new();
    let data = b"a blob that a disk lost";
    let digest = lab.put(&ctx(), data).await;
    let lose: [&dyn Fn(); 2] = [&|| std::fs::remove_file(lab.blob_file(&digest)).unwrap(), &|| {
        std::fs::write(lab.blob_file(&digest), b"").unwrap()
    }];
    for lose in lose {
        lose();
        assert!(!lab.store.has(&ctx(), &digest).unwrap());
        let mut writer = lab.expecting(&ctx(), "again", data.len() as u64, &digest).await.unwrap();
        assert_eq!(writer.offset(), 0);
        writer.write(data).unwrap();
        let error = writer.commit(0, Some(&digest), Labels::new()).await.unwrap_err();
        assert!(error.is_already_exists());
        assert_eq!(lab.store.read(&ctx(), &digest, 100).unwrap(), data);
    }
}
