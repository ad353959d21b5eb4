//! What people and scripts see: help, tables, errors with advice. `shown.txt` is kept; `UPDATE_SHOWN=1` writes it anew.
//!
//! `$ ctr …` is run with its output in a pipe, `# ctr …` at a terminal.

use std::fmt::Write;

use corten_tests::{ImageBuilder, Layer, Node, Session, peers};
use regex::Regex;

const LINES: &[&str] = &[
    "$ ctr --help",
    "$ ctr images",
    "$ ctr tasks exec --help",
    "$ ctr top --help",
    "$ ctr logs --help",
    "$ ctr cp --help",
    "$ ctr images ls",
    "# ctr images ls",
    "# ctr images ls --format plain",
    "$ ctr images ls --format yaml",
    "# ctr images history example.com/lab/two:1",
    "$ ctr images history --format json example.com/lab/two:1",
    "$ ctr images tree",
    "$ ctr containers ls",
    "# ctr containers ls",
    "$ ctr containers ls --format json",
    "$ ctr containers ls -q",
    "$ ctr tasks ls",
    "$ ctr snapshots ls",
    "$ ctr snapshots ls -q",
    "$ ctr leases ls",
    "# ctr leases ls",
    "$ ctr namespaces ls",
    "# ctr check --format table",
    "# ctr contaners ls",
    "# ctr run example.com/none:1 x",
    "# ctr containers rm nope",
    "# ctr --address /nope/containerd.sock containers ls",
    "$ ctr --address /nope/containerd.sock containers ls",
];

/// Takes away what differs from one run to the next.
fn plain(node: &Node, text: &str) -> String {
    let text = text.replace('\r', "").replace('\u{1b}', "␛");
    let text = text.replace(&node.path().display().to_string(), "DIR").replace(node.namespace(), "NAMESPACE");
    let rules = [
        (r"[0-9a-f]{64}", "DIGEST"),
        (r"\b[0-9a-f]{12}\b", "DIGEST"),
        (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", "TIME"),
        (r"(Less than a second|About a minute|About an hour|\d+ \w+) ago", "AGO"),
        (r"\d+\.\d+ (B|KiB|MiB)", "SIZE"),
        (r"2\.1\.0-corten\.\S+", "VERSION"),
        // Columns are as wide as what was in them.
        (r" {2,}", "  "),
        (r"(?m) +$", ""),
    ];
    rules
        .iter()
        .fold(text, |text, (rule, with)| Regex::new(rule).unwrap().replace_all(&text, *with).into_owned())
}

#[test]
fn what_is_shown_is_what_was_agreed() {
    let node = Node::start();
    let base = Layer::new().file("base", 0o644, b"1").finish();
    let top = Layer::new().file("top", 0o644, b"2").finish();
    for (name, layers) in [("one", vec![base.clone()]), ("two", vec![base, top])] {
        let image = layers.into_iter().fold(ImageBuilder::new(), ImageBuilder::layer).build();
        let archive = node.join(name);
        image.save(&archive, &format!("example.com/lab/{name}:1")).unwrap();
        node.ctr(["images", "import", archive.to_str().unwrap()]).ok();
    }
    node.ctr(["containers", "create", "example.com/lab/two:1", "box", "true"]).ok();
    node.ctr(["leases", "create", "--id", "held", "-x", "0", "a=b"]).ok();
    let mut text = String::new();
    for line in LINES {
        let words: Vec<&str> = line.split_whitespace().skip(2).collect();
        let command = node.ctr_command(words.iter().copied());
        let (code, shown) = if line.starts_with('$') {
            let finished = corten_tests::command::run(command);
            (finished.code.unwrap_or(-1), finished.stdout + &finished.stderr)
        } else {
            Session::start(&command).finish()
        };
        // What this machine has is its own matter.
        let shown =
            if words[0] == "check" { shown.lines().next().unwrap_or_default().to_owned() } else { shown };
        let end =
            if code == 0 || words[0] == "check" { String::new() } else { format!("[exit code {code}]\n") };
        let _ = writeln!(text, "{line}\n{}{end}", plain(&node, &shown).trim_end().to_owned() + "\n");
    }
    node.ctr(["containers", "rm", "box"]).ok();
    node.ctr(["leases", "rm", "held"]).ok();
    node.finish();
    let file = peers::workspace().join("tests/suites/ctr_tools/shown.txt");
    if std::env::var_os("UPDATE_SHOWN").is_some() {
        std::fs::write(&file, &text).unwrap();
    }
    let kept = std::fs::read_to_string(&file).unwrap_or_default();
    for (now, before) in text.lines().zip(kept.lines()) {
        assert_eq!(now, before, "if this is meant, UPDATE_SHOWN=1 writes {} anew", file.display());
    }
    assert_eq!(text.lines().count(), kept.lines().count(), "{text}");
}
