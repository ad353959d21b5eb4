//! Stream processors before the extraction.

use std::collections::BTreeMap;

use corten_diff::{ApplyRequest, Differ, StreamProcessor};
use corten_types::{Any, media_type};

use super::{Lab, bind, ctx};

const ENCRYPTED: &str = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted";

fn processor(id: &str, accepts: &str, returns: &str, script: &str) -> StreamProcessor {
    StreamProcessor {
        id: id.into(),
        accepts: vec![accepts.into()],
        returns: returns.into(),
        path: "sh".into(),
        args: vec!["-c".into(), script.into()],
        env: Vec::new(),
    }
}

/// A layer with every byte turned around.
fn encrypted(lab: &Lab) -> corten_types::Descriptor {
    let tree = lab.new_folder("tree");
    std::fs::write(tree.join("secret"), "text").unwrap();
    let made = lab.diff(&corten_diff::DiffRequest { upper: bind(&tree), ..Default::default() }).unwrap();
    let bytes: Vec<u8> = lab.bytes(&made.digest).iter().map(|byte| byte.wrapping_add(1)).collect();
    lab.store(ENCRYPTED, &bytes)
}

/// Subtracts one of each byte.
const DECODE: &str = r"LC_ALL=C tr '\001-\377\000' '\000-\377'";

#[test]
fn layers_pass_through_a_chain_of_programs() {
    let chain = vec![
        processor("decode", ENCRYPTED, "x/half", DECODE),
        processor("name", "x/half", media_type::OCI_LAYER_GZIP, "cat"),
        // Of two that take the same, the later one.
        processor("broken", ENCRYPTED, "x/half", "exit 1"),
        processor("decode", ENCRYPTED, "x/half", DECODE),
    ];
    let lab = Lab::with(chain);
    let layer = encrypted(&lab);
    let to = lab.new_folder("to");
    let applied = lab.apply(layer, &bind(&to)).unwrap();
    assert_eq!(std::fs::read_to_string(to.join("secret")).unwrap(), "text");
    assert_eq!(applied.media_type, media_type::OCI_LAYER);
}

#[test]
fn a_program_gets_the_message_that_is_for_it() {
    let script =
        format!("[ \"$(cat <&3 | tr -cd 'a-z' )\" = keyvalue ] || {{ echo no key >&2; exit 1; }}; {DECODE}");
    let lab = Lab::with(vec![processor("decode", ENCRYPTED, media_type::OCI_LAYER_GZIP, &script)]);
    let layer = encrypted(&lab);
    let to = lab.new_folder("to");
    let mut request = ApplyRequest::new(layer.clone(), bind(&to));
    let payload = Any { type_url: "key".into(), value: b"value".to_vec() };
    request.payloads = BTreeMap::from([("decode".to_owned(), payload)]);
    lab.runtime.block_on(lab.differ.apply(&ctx(), &request)).unwrap();
    assert!(to.join("secret").exists());
}

#[test]
fn a_program_that_fails_or_is_missing_is_told() {
    let failing = processor("decode", ENCRYPTED, media_type::OCI_LAYER_GZIP, "echo wrong key >&2; exit 1");
    let lab = Lab::with(vec![failing]);
    let layer = encrypted(&lab);
    let to = lab.new_folder("to");
    let error = lab.apply(layer, &bind(&to)).unwrap_err();
    assert!(error.message().contains("wrong key"), "{error}");
    let lab = Lab::new();
    let layer = encrypted(&lab);
    let to = lab.new_folder("to");
    let error = lab.apply(layer, &bind(&to)).unwrap_err();
    assert!(error.message().contains("no processor for media-type"), "{error}");
    // One that makes of a type the same type never comes to an end.
    let lab = Lab::with(vec![processor("loop", ENCRYPTED, ENCRYPTED, "cat")]);
    let layer = encrypted(&lab);
    let to = lab.new_folder("to");
    assert!(lab.apply(layer, &bind(&to)).unwrap_err().message().contains("stream processors"));
}
