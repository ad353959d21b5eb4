//! Ingests: begun, resumed, committed, given up.

use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use corten_content::Policy;
use corten_types::digest::Algorithm;
use corten_types::{Digest, Digester, ErrorClass, Labels};

use crate::{Lab, ctx, text};

#[tokio::test]
async fn a_blob_is_where_the_original_has_it_and_nothing_else_is_left() {
    let lab = Lab::new();
    let mut events = lab.exchange.subscribe::<&str>(&[]).unwrap();
    let mut writer = lab.open(&ctx(), "r", 10).await.unwrap();
    let ingest = lab.ingest_folder("lab/1/r");
    assert_eq!(std::fs::read_to_string(ingest.join("ref")).unwrap(), "lab/1/r");
    assert_eq!(std::fs::read_to_string(ingest.join("total")).unwrap(), "10");
    writer.write(b"hello").unwrap();
    assert_eq!((writer.offset(), writer.digest()), (5, Digest::sha256(b"hello")));
    let status = lab.store.status(&ctx(), "r").unwrap();
    assert_eq!((status.offset, status.total, status.expected), (5, 10, None));
    assert!(status.updated_at >= status.started_at);
    writer.write(b"world").unwrap();
    let labels = Labels::from([("a".into(), "1".into()), ("b".into(), String::new())]);
    let digest = writer.commit(10, Some(&Digest::sha256(b"helloworld")), labels).await.unwrap();
    let file = lab.blob_file(&digest);
    assert_eq!(std::fs::read(&file).unwrap(), b"helloworld");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o444);
    assert!(!ingest.exists());
    let info = lab.store.info(&ctx(), &digest).unwrap();
    assert_eq!((info.size, info.labels), (10, Labels::from([("a".into(), "1".into())])));
    assert_eq!(events.recv().await.unwrap().topic, "/content/create");
    assert!(lab.store.statuses(&ctx(), &[]).unwrap().is_empty());
}

#[tokio::test]
async fn much_at_once_is_hashed_beside_the_writing() {
    let lab = Lab::new();
    let mut writer = lab.open(&ctx(), "r", 0).await.unwrap();
    let parts = [vec![1; 300_000], vec![2; 10], vec![3; 1 << 20]].map(bytes::Bytes::from);
    let whole = parts.concat();
    let writer = tokio::task::spawn_blocking(move || {
        parts.iter().for_each(|part| writer.write_shared(part).unwrap());
        writer
    });
    let writer = writer.await.unwrap();
    assert_eq!((writer.offset(), writer.digest()), (whole.len() as u64, Digest::sha256(&whole)));
    let digest = writer.commit(0, None, Labels::new()).await.unwrap();
    assert_eq!(std::fs::read(lab.blob_file(&digest)).unwrap(), whole);
}

#[tokio::test]
async fn an_ingest_is_resumed_after_a_restart() {
    let lab = Lab::new();
    let mut writer = lab.open(&ctx(), "r", 10).await.unwrap();
    writer.write(b"hello").unwrap();
    drop(writer);
    let lab = lab.restarted();
    let mut writer = lab.open(&ctx(), "r", 10).await.unwrap();
    assert_eq!((writer.offset(), writer.digest()), (5, Digest::sha256(b"hello")));
    writer.write(b"world").unwrap();
    let digest = writer.commit(10, None, Labels::new()).await.unwrap();
    assert_eq!(digest, Digest::sha256(b"helloworld"));
}

#[tokio::test]
async fn an_ingest_of_another_size_is_begun_anew() {
    let lab = Lab::new();
    let mut writer = lab.open(&ctx(), "r", 10).await.unwrap();
    writer.write(b"hello").unwrap();
    drop(writer);
    assert_eq!(lab.open(&ctx(), "r", 0).await.unwrap().offset(), 5);
    assert_eq!(lab.open(&ctx(), "r", 11).await.unwrap().offset(), 0);
    assert_eq!(lab.store.status(&ctx(), "r").unwrap().total, 11);
}

#[tokio::test]
async fn files_that_a_crash_left_half_made_are_made_anew() {
    let lab = Lab::new();
    drop(lab.open(&ctx(), "r", 10).await.unwrap());
    let folder = lab.ingest_folder("lab/1/r");
    for gone in ["data", "total", "ref", "startedat"] {
        std::fs::remove_file(folder.join(gone)).unwrap();
        std::fs::write(folder.join("updatedat"), "nonsense").unwrap();
        let mut writer = lab.open(&ctx(), "r", 10).await.unwrap();
        writer.truncate().unwrap();
        writer.write(b"x").unwrap();
        assert_eq!(writer.digest(), Digest::sha256(b"x"));
        assert_eq!(lab.store.status(&ctx(), "r").unwrap().offset, 1);
    }
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(lab.store.statuses(&ctx(), &[]).unwrap().is_empty());
    assert_eq!(lab.open(&ctx(), "r", 10).await.unwrap().offset(), 0);
}

#[tokio::test]
async fn only_one_writes_under_a_reference() {
    let lab = Lab::new();
    let writer = lab.open(&ctx(), "rl", 0).await.unwrap();
    let error = lab.open(&ctx(), "rl", 0).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Unavailable);
    let text = error.to_string();
    assert!(
        text.starts_with("ref lab/1/rl locked for ") && text.ends_with("+0000 UTC): unavailable"),
        "{text}"
    );
    lab.open(&crate::in_namespace("other"), "rl", 0).await.unwrap();
    drop(writer);
    lab.open(&ctx(), "rl", 0).await.unwrap();
}

#[tokio::test]
async fn what_does_not_verify_is_not_committed_and_stays() {
    let lab = Lab::new();
    let mut writer = lab.open(&ctx(), "r1", 0).await.unwrap();
    writer.write(b"12345678").unwrap();
    let short = writer.commit(10, None, Labels::new()).await;
    assert_eq!(text(short), "\"r1\" failed size validation: 8 != 10: failed precondition");
    let writer = lab.open(&ctx(), "r1", 0).await.unwrap();
    let (got, wanted) = (Digest::sha256(b"12345678"), Digest::sha256(b"other"));
    assert_eq!(
        text(writer.commit(8, Some(&wanted), Labels::new()).await),
        format!("unexpected commit digest {got}, expected {wanted}: failed precondition")
    );
    assert_eq!(lab.store.status(&ctx(), "r1").unwrap().offset, 8);
    let long = Labels::from([("k".into(), "v".repeat(5000))]);
    let error = lab.open(&ctx(), "r1", 0).await.unwrap().commit(8, None, long).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::InvalidArgument);
    assert_eq!(lab.store.status(&ctx(), "r1").unwrap().offset, 8);
    assert!(std::fs::read_dir(lab.folder.path().join("content/blobs/sha256")).unwrap().next().is_none());
    lab.store.abort(&ctx(), "r1").await.unwrap();
    assert!(!lab.ingest_folder("lab/1/r1").exists());
}

#[tokio::test]
async fn unknown_references_are_told_of_as_the_original_does() {
    let lab = Lab::new();
    assert_eq!(
        text(lab.store.status(&ctx(), "zz")),
        "could not get status for ref \"zz\": reference zz: not found"
    );
    assert_eq!(text(lab.store.abort(&ctx(), "nope").await), "reference nope: not found");
    for reference in ["b", "a"] {
        drop(lab.open(&ctx(), reference, 0).await.unwrap());
    }
    let found = lab.store.statuses(&ctx(), &["ref==a".into()]).unwrap();
    assert_eq!(found.iter().map(|status| status.reference.as_str()).collect::<Vec<_>>(), ["a"]);
}

#[tokio::test]
async fn truncation_begins_anew_with_the_same_algorithm() {
    let lab = Lab::new();
    let sha512 = |data: &[u8]| {
        let mut digester = Digester::new(Algorithm::Sha512);
        digester.update(data);
        digester.finish()
    };
    let wanted = sha512(b"right");
    let mut writer = lab.expecting(&ctx(), "r", 0, &wanted).await.unwrap();
    writer.write(b"wrong and longer").unwrap();
    writer.truncate().unwrap();
    assert_eq!(writer.offset(), 0);
    writer.write(b"right").unwrap();
    assert_eq!(writer.digest(), wanted);
    assert_eq!(writer.commit(5, Some(&wanted), Labels::new()).await.unwrap(), wanted);
    assert_eq!(std::fs::read(lab.blob_file(&wanted)).unwrap(), b"right");

    // Expected only at the end: hashed again.
    let mut writer = lab.open(&ctx(), "s", 0).await.unwrap();
    writer.write(b"later").unwrap();
    let later = sha512(b"later");
    assert_eq!(writer.commit(5, Some(&later), Labels::new()).await.unwrap(), later);
}

#[tokio::test]
async fn an_ingest_can_be_given_up_while_it_is_written() {
    let lab = Lab::new();
    let mut writer = lab.open(&ctx(), "r", 0).await.unwrap();
    writer.write(b"old").unwrap();
    lab.store.abort(&ctx(), "r").await.unwrap();
    writer.write(b"er").unwrap();
    let mut next = lab.open(&ctx(), "r", 0).await.unwrap();
    assert_eq!(next.offset(), 0);
    next.write(b"new").unwrap();
    assert_eq!(writer.commit(0, None, Labels::new()).await.unwrap_err().class(), ErrorClass::NotFound);
    assert!(!lab.blob_file(&Digest::sha256(b"older")).exists());
    next.commit(3, None, Labels::new()).await.unwrap();
    let writer = lab.open(&ctx(), "s", 0).await.unwrap();
    writer.abandon().await.unwrap();
    assert!(lab.store.status(&ctx(), "s").is_err());
}

#[tokio::test]
async fn bytes_can_be_read_while_they_arrive_and_after_the_commit() {
    let lab = Lab::new();
    let mut writer = lab.open(&ctx(), "r", 0).await.unwrap();
    let (mut reader, mut text) = (writer.reader().unwrap(), String::new());
    writer.write(b"one").unwrap();
    reader.read_to_string(&mut text).unwrap();
    writer.write(b"two").unwrap();
    writer.commit(0, None, Labels::new()).await.unwrap();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "onetwo");
    reader.seek(SeekFrom::Start(0)).unwrap();
    assert!(std::io::Write::write(&mut reader, b"x").is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_write_at_once() {
    let lab = Arc::new(Lab::new());
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..32 {
        let lab = Arc::clone(&lab);
        tasks.spawn(async move {
            // Every two write the same bytes: one of them finds them there.
            let data = format!("data {}", n / 2).repeat(1000);
            let mut writer = lab.open(&ctx(), &format!("r{n}"), 0).await.unwrap();
            writer.write(data.as_bytes()).unwrap();
            match writer.commit(data.len() as u64, None, Labels::new()).await {
                Ok(_) => true,
                Err(error) if error.is_already_exists() => false,
                Err(error) => panic!("{error}"),
            }
        });
    }
    let made = tasks.join_all().await.into_iter().filter(|made| *made).count();
    assert_eq!((made, lab.store.list(&ctx(), &[]).unwrap().len()), (16, 16));
    assert!(lab.store.statuses(&ctx(), &[]).unwrap().is_empty());
}

#[tokio::test]
async fn a_full_disk_fails_the_write_and_the_rest_can_follow() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let disk = TinyDisk::mount(folder.path());
    let lab = Lab::at(folder, Policy::Shared);
    let data: Vec<u8> = (0..2_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let mut writer = lab.open(&ctx(), "r", data.len() as u64).await.unwrap();
    let ballast = lab.folder.path().join("ballast");
    std::fs::write(&ballast, vec![0; 6 << 20]).unwrap();
    let error = data.chunks(1 << 20).map(|chunk| writer.write(chunk)).find_map(Result::err).unwrap();
    assert_eq!(error.class(), ErrorClass::ResourceExhausted, "{error}");
    drop(writer);
    std::fs::remove_file(ballast).unwrap();
    let mut writer = lab.open(&ctx(), "r", data.len() as u64).await.unwrap();
    assert!(writer.offset() > 0);
    let rest = usize::try_from(writer.offset()).unwrap();
    writer.write(&data[rest..]).unwrap();
    let digest = writer.commit(data.len() as u64, None, Labels::new()).await.unwrap();
    assert_eq!(digest, Digest::sha256(&data));
    drop(lab);
    drop(disk);
}

#[tokio::test]
async fn what_a_failed_write_left_is_no_part_of_the_blob() {
    let lab = Lab::new();
    let mut writer = lab.open(&ctx(), "r", 0).await.unwrap();
    writer.write(b"good").unwrap();
    // As a write does that fails after some of its bytes.
    let path = lab.ingest_folder("lab/1/r").join("data");
    std::fs::write(&path, b"good and more").unwrap();
    let digest = writer.commit(4, None, Labels::new()).await.unwrap();
    assert_eq!(std::fs::read(lab.blob_file(&digest)).unwrap(), b"good");
}

/// A file system in memory that is soon full.
struct TinyDisk(std::path::PathBuf);

impl TinyDisk {
    fn mount(folder: &std::path::Path) -> Self {
        let arguments = ["-t", "tmpfs", "-o", "size=12m", "tiny"];
        let mounted = std::process::Command::new("mount").args(arguments).arg(folder).status().unwrap();
        assert!(mounted.success());
        Self(folder.to_owned())
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        std::process::Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}
