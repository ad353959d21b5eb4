//! Single layers, and how they are stored.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::time::{Duration, SystemTime};

use corten_diff::DiffRequest;
use corten_types::{Digest, ErrorClass, Labels, media_type};

use super::{Lab, bind, ctx, names, overlay};

#[test]
fn the_upper_layer_alone_is_not_believed_when_it_leads_elsewhere() {
    let lab = Lab::new();
    let (lower, upper) = (lab.new_folder("lower"), lab.new_folder("upper"));
    std::fs::create_dir(lower.join("a")).unwrap();
    std::fs::write(lower.join("a/file"), "below").unwrap();
    // As `redirect_dir=on` renames a folder.
    std::fs::create_dir(upper.join("b")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        upper.join("a"),
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::empty(),
        0,
    )
    .unwrap();
    rustix::fs::setxattr(upper.join("b"), "trusted.overlay.redirect", b"a", rustix::fs::XattrFlags::empty())
        .unwrap();
    let layer = lab.layer(&bind(&lower), &overlay(&[&upper, &lower], None, None));
    // What the kernel shows decides: it follows redirections, or refuses the folder.
    assert!(names(&layer).contains(&".wh.a".to_owned()), "{:?}", names(&layer));
    assert!(names(&layer).contains(&"b/".to_owned()), "{:?}", names(&layer));
}

#[test]
fn blobs_have_digests_labels_and_the_compression_of_their_type() {
    let lab = Lab::new();
    let tree = lab.new_folder("tree");
    std::fs::write(tree.join("file"), vec![7; 3_000_000]).unwrap();
    symlink("file", tree.join("link")).unwrap();
    std::os::unix::net::UnixListener::bind(tree.join("socket")).unwrap();
    let plain = lab.layer(&[], &bind(&tree));
    assert_eq!(names(&plain), ["file", "link"]);
    for (media_type, is_gzip) in
        [("", true), (media_type::OCI_LAYER_GZIP, true), (media_type::OCI_LAYER_ZSTD, false)]
    {
        let labels: Labels = BTreeMap::from([("k".to_owned(), "v".to_owned())]).into_iter().collect();
        let request = DiffRequest {
            upper: bind(&tree),
            media_type: media_type.to_owned(),
            labels,
            ..DiffRequest::default()
        };
        let made = lab.diff(&request).unwrap();
        let known = lab.store.info(&ctx(), &made.digest).unwrap();
        assert_eq!(known.labels["containerd.io/uncompressed"], Digest::sha256(&plain).to_string());
        assert_eq!(i64::try_from(known.size).unwrap(), made.size);
        let bytes = lab.bytes(&made.digest);
        let mut back = Vec::new();
        if is_gzip {
            assert_eq!(made.media_type, media_type::OCI_LAYER_GZIP);
            flate2::read::GzDecoder::new(bytes.as_slice()).read_to_end(&mut back).unwrap();
        } else {
            back = zstd::decode_all(bytes.as_slice()).unwrap();
        }
        assert!(back == plain);
    }
    assert_eq!(lab.store.statuses(&ctx(), &[]).unwrap(), []);
}

#[test]
fn nothing_is_an_empty_layer_and_unknown_types_are_refused() {
    let lab = Lab::new();
    let made = lab.diff(&DiffRequest::default()).unwrap();
    let mut back = Vec::new();
    flate2::read::GzDecoder::new(lab.bytes(&made.digest).as_slice()).read_to_end(&mut back).unwrap();
    assert_eq!(back, [0; 1024]);
    let request = DiffRequest { media_type: "foo".into(), ..DiffRequest::default() };
    let error = lab.diff(&request).unwrap_err();
    assert_eq!(error.class(), ErrorClass::NotImplemented);
    assert_eq!(error.message(), "unsupported diff media type: foo: not implemented");
}

#[test]
fn a_reference_of_the_caller_is_begun_anew_and_ours_does_not_stay() {
    let lab = Lab::new();
    let tree = lab.new_folder("tree");
    std::fs::write(tree.join("file"), "x").unwrap();
    lab.runtime.block_on(async {
        let options = corten_content::WriterOptions { reference: "mine".into(), ..Default::default() };
        lab.store.writer(&ctx(), options).await.unwrap().write(b"rubbish").unwrap();
    });
    let request = DiffRequest { upper: bind(&tree), reference: "mine".into(), ..DiffRequest::default() };
    let made = lab.diff(&request).unwrap();
    assert_eq!(lab.diff(&DiffRequest { upper: bind(&tree), ..DiffRequest::default() }).unwrap(), made);
    let missing = DiffRequest { upper: bind(&tree.join("missing")), ..DiffRequest::default() };
    assert!(lab.diff(&missing).unwrap_err().message().contains("missing"));
    assert_eq!(lab.store.statuses(&ctx(), &[]).unwrap(), []);
}

#[test]
fn later_times_are_clamped_and_removals_are_of_no_time() {
    let lab = Lab::new();
    let (old, new) = (lab.new_folder("old"), lab.new_folder("new"));
    std::fs::write(old.join("gone"), "x").unwrap();
    for (name, seconds) in [("early", 1000), ("late", 3000)] {
        let file = std::fs::File::create(new.join(name)).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
    }
    let request = DiffRequest {
        lower: bind(&old),
        upper: bind(&new),
        media_type: media_type::OCI_LAYER.into(),
        source_date_epoch: Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1_999_600)),
        ..DiffRequest::default()
    };
    let layer = lab.bytes(&lab.diff(&request).unwrap().digest);
    let mut archive = tar::Archive::new(layer.as_slice());
    let times: Vec<_> =
        archive.entries().unwrap().map(|entry| entry.unwrap().header().mtime().unwrap()).collect();
    assert_eq!(
        (names(&layer), times),
        (vec!["early".into(), ".wh.gone".into(), "late".into()], vec![1000, 0, 2000])
    );
}

#[test]
fn trees_deeper_than_descriptors_are_compared() {
    let lab = Lab::new();
    let (old, new) = (lab.new_folder("old"), lab.new_folder("new"));
    let deep: std::path::PathBuf = std::iter::repeat_n("d", 1500).collect();
    for tree in [&old, &new] {
        std::fs::create_dir_all(tree.join(&deep)).unwrap();
    }
    std::fs::write(new.join(&deep).join("file"), "x").unwrap();
    std::fs::write(new.join("e"), "x").unwrap();
    let layer = lab.layer(&bind(&old), &bind(&new));
    assert_eq!(names(&layer).len(), 1502);
    assert_eq!(names(&layer).last().unwrap(), "e");
}
