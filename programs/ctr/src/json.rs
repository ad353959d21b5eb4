//! JSON in the form of the original: fields in the order of its structures, four spaces, `<`, `>` and `&` escaped.

use serde_json::Value;

/// A document whose fields keep their order.
#[derive(Clone, Debug)]
pub enum Document {
    /// Fields in order.
    Object(Vec<(String, Document)>),
    /// Elements.
    Array(Vec<Document>),
    /// Anything else; the fields of objects are sorted.
    Value(Value),
}

/// An object from names and values.
pub fn object<const N: usize>(fields: [(&str, Document); N]) -> Document {
    Document::Object(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

impl<T: Into<Value>> From<T> for Document {
    fn from(value: T) -> Self {
        Self::Value(value.into())
    }
}

impl Document {
    /// Whether it takes lines of its own in YAML.
    fn is_block(&self) -> bool {
        match self {
            Self::Object(fields) => !fields.is_empty(),
            Self::Array(list) => !list.is_empty(),
            Self::Value(Value::Object(fields)) => !fields.is_empty(),
            Self::Value(Value::Array(list)) => !list.is_empty(),
            Self::Value(_) => false,
        }
    }

    /// The text, each level indented by `indent` more; none for all in one line.
    pub fn text(&self, indent: usize) -> String {
        let mut out = String::new();
        write(self, indent, 0, &mut out);
        out
    }

    /// The document as YAML.
    pub fn yaml(&self) -> String {
        let mut out = String::new();
        yaml(self, 0, false, &mut out);
        out
    }

    /// An OCI specification, its fields in the order in which the OCI's structures have them.
    pub fn spec(value: Value) -> Self {
        order(value, "")
    }
}

/// Prints a document with a line's end.
pub fn print(document: &Document) {
    println!("{}", document.text(4));
}

fn write(document: &Document, indent: usize, level: usize, out: &mut String) {
    match document {
        Document::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| (Some(name.as_str()), value.clone()));
            list(fields, ['{', '}'], indent, level, out);
        }
        Document::Array(elements) => {
            list(elements.iter().map(|one| (None, one.clone())), ['[', ']'], indent, level, out);
        }
        Document::Value(Value::Object(fields)) => {
            let fields =
                fields.iter().map(|(name, value)| (Some(name.as_str()), Document::Value(value.clone())));
            list(fields, ['{', '}'], indent, level, out);
        }
        Document::Value(Value::Array(elements)) => {
            let elements = elements.iter().map(|one| (None, Document::Value(one.clone())));
            list(elements, ['[', ']'], indent, level, out);
        }
        Document::Value(Value::String(text)) => string(text, out),
        Document::Value(other) => out.push_str(&other.to_string()),
    }
}

fn list<'a>(
    items: impl Iterator<Item = (Option<&'a str>, Document)>,
    brackets: [char; 2],
    indent: usize,
    level: usize,
    out: &mut String,
) {
    let line = |level: usize, out: &mut String| {
        if indent > 0 {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * level));
        }
    };
    out.push(brackets[0]);
    let mut empty = true;
    for (name, value) in items {
        if !empty {
            out.push(',');
        }
        empty = false;
        line(level + 1, out);
        if let Some(name) = name {
            string(name, out);
            out.push_str(if indent > 0 { ": " } else { ":" });
        }
        write(&value, indent, level + 1, out);
    }
    if !empty {
        line(level, out);
    }
    out.push(brackets[1]);
}

fn string(text: &str, out: &mut String) {
    let quoted = Value::String(text.to_owned()).to_string();
    for one in quoted.chars() {
        match one {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => out.push_str(&format!("\\u{:04x}", one as u32)),
            other => out.push(other),
        }
    }
}

/// Writes a value of YAML, and ends its line; `inline` where something stands before it in the line.
fn yaml(document: &Document, level: usize, inline: bool, out: &mut String) {
    let (mut lines, mut is_list) = (Vec::new(), false);
    match document {
        Document::Object(fields) => {
            lines.extend(fields.iter().map(|(name, value)| (Some(name.clone()), value.clone())));
        }
        Document::Value(Value::Object(fields)) => {
            lines.extend(
                fields.iter().map(|(name, value)| (Some(name.clone()), Document::Value(value.clone()))),
            );
        }
        Document::Array(list) => {
            is_list = true;
            lines.extend(list.iter().map(|one| (None, one.clone())));
        }
        Document::Value(Value::Array(list)) => {
            is_list = true;
            lines.extend(list.iter().map(|one| (None, Document::Value(one.clone()))));
        }
        Document::Value(Value::String(text)) => return out.push_str(&format!("{}\n", scalar(text))),
        Document::Value(other) => return out.push_str(&format!("{other}\n")),
    }
    if lines.is_empty() {
        return out.push_str(if is_list { "[]\n" } else { "{}\n" });
    }
    for (at, (name, value)) in lines.into_iter().enumerate() {
        if at > 0 || !inline {
            out.extend(std::iter::repeat_n("  ", level));
        }
        let Some(name) = name else {
            out.push_str("- ");
            yaml(&value, level + 1, true, out);
            continue;
        };
        out.push_str(&scalar(&name));
        out.push(':');
        match value.is_block() {
            true => {
                out.push('\n');
                yaml(&value, level + 1, false, out);
            }
            false => {
                out.push(' ');
                yaml(&value, level + 1, true, out);
            }
        }
    }
}

/// Text as YAML reads it back: bare where it cannot be taken for something else.
fn scalar(text: &str) -> String {
    const WORDS: [&str; 9] = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    let plain = |char: char| char.is_ascii_alphanumeric() || "_./@-:+".contains(char);
    let begins = |char: char| char.is_ascii_alphabetic() || matches!(char, '_' | '/');
    let is_bare = text.starts_with(begins)
        && text.chars().all(plain)
        && !text.ends_with(':')
        && !WORDS.contains(&text.to_lowercase().as_str());
    if is_bare { text.to_owned() } else { Value::String(text.to_owned()).to_string() }
}

/// The fields of an object of a specification, by the name of the field that holds it.
fn fields(parent: &str) -> &'static str {
    match parent {
        "" => {
            "ociVersion process root hostname domainname mounts hooks annotations linux solaris windows vm zos"
        }
        "process" => {
            "terminal consoleSize user args commandLine env cwd capabilities rlimits noNewPrivileges \
             apparmorProfile oomScoreAdj scheduler selinuxLabel ioPriority execCPUAffinity"
        }
        "user" => "uid gid umask additionalGids username",
        "capabilities" => "bounding effective inheritable permitted ambient",
        "rlimits" => "type hard soft",
        "root" => "path readonly",
        "mounts" => "destination type source options uidMappings gidMappings",
        "uidMappings" | "gidMappings" => "containerID hostID size",
        "linux" => {
            "uidMappings gidMappings sysctl resources cgroupsPath namespaces devices netDevices seccomp \
             rootfsPropagation maskedPaths readonlyPaths mountLabel intelRdt personality timeOffsets"
        }
        "resources" => "devices memory cpu pids blockIO hugepageLimits network rdma unified",
        "devices" => "allow path type major minor fileMode uid gid access",
        "memory" => {
            "limit reservation swap kernel kernelTCP swappiness disableOOMKiller useHierarchy checkBeforeUpdate"
        }
        "cpu" => "shares quota burst period realtimeRuntime realtimePeriod cpus mems idle",
        "namespaces" => "type path",
        "intelRdt" => "closID l3CacheSchema memBwSchema enableCMT enableMBM",
        "seccomp" => {
            "defaultAction defaultErrnoRet architectures flags listenerPath listenerMetadata syscalls"
        }
        "syscalls" => "names action errnoRet args",
        "args" => "index value valueTwo op",
        "prestart" | "createRuntime" | "createContainer" | "startContainer" | "poststart" | "poststop" => {
            "path args env timeout"
        }
        _ => "",
    }
}

fn order(value: Value, parent: &str) -> Document {
    match value {
        Value::Object(map) => {
            let known: Vec<&str> = fields(parent).split_whitespace().collect();
            let place = |name: &str| known.iter().position(|known| *known == name).unwrap_or(known.len());
            let mut list: Vec<(String, Value)> = map.into_iter().collect();
            list.sort_by_key(|(name, _)| place(name));
            let ordered = |(name, value): (String, Value)| {
                let value = order(value, &name);
                (name, value)
            };
            Document::Object(list.into_iter().map(ordered).collect())
        }
        Value::Array(list) => Document::Array(list.into_iter().map(|one| order(one, parent)).collect()),
        other => Document::Value(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_keep_their_order_and_markup_is_escaped() {
        let document = object([("b", "<&>".into()), ("a", json!([]).into()), ("c", json!({"x": 1}).into())]);
        assert_eq!(document.text(0), r#"{"b":"\u003c\u0026\u003e","a":[],"c":{"x":1}}"#);
        assert_eq!(object([("a", json!([1]).into())]).text(2), "{\n  \"a\": [\n    1\n  ]\n}");
    }

    #[test]
    fn specifications_have_the_order_of_the_ocis_structures() {
        let spec = json!({"linux": {"namespaces": [{"path": "/x", "type": "pid"}]}, "ociVersion": "1"});
        let text = Document::spec(spec).text(0);
        assert_eq!(text, r#"{"ociVersion":"1","linux":{"namespaces":[{"type":"pid","path":"/x"}]}}"#);
    }

    #[test]
    fn yaml_is_read_back_as_what_it_was() {
        let document = object([
            ("name", "a:1".into()),
            ("yes", "no".into()),
            ("size", 7.into()),
            ("text", "a: b\n\u{1b}".into()),
            ("none", json!([]).into()),
            ("list", json!([{"x": 1, "y": ["1", "b"]}, {}]).into()),
        ]);
        let text = "name: a:1\n\"yes\": \"no\"\nsize: 7\ntext: \"a: b\\n\\u001b\"\nnone: []\nlist:\n  - x: 1\n    \"y\":\n      - \"1\"\n      - b\n  - {}\n";
        assert_eq!(document.yaml(), text);
    }
}
