//! What every service answers, message by message: tables of requests and answers (spec 01, with its §18),
//! asked of our daemon and of Debian's containerd 2.1, so that the expectations are known to be right.
//! `README.md` in this folder tells how tables are written, and how to record answers.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod compare;
mod table;

use std::collections::HashMap;
use std::fmt::Write;
use std::time::Duration;

use bytes::Bytes;
use corten_tests::dynamic::{Answer, With};
use corten_tests::{Call, Caller, Digest, Layer, Node, Peers};
use prost_reflect::prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor};
use table::{Row, Side, Step, Values};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// One daemon under a table.
struct Session {
    pool: DescriptorPool,
    caller: Caller,
    debian: bool,
    folder: String,
    open: HashMap<String, (String, Call)>,
}

impl Session {
    /// The method that `Service.Method` means.
    fn method(&self, name: &str) -> Option<MethodDescriptor> {
        let (service, method) = name.rsplit_once('.')?;
        corten_tests::dynamic::methods(&self.pool)
            .into_iter()
            .find(|known| known.parent_service().name() == service && known.name() == method)
    }

    fn encode(&self, method: Option<&MethodDescriptor>, text: &str) -> Bytes {
        let Some(method) = method else { return Bytes::new() };
        let text = text.trim().trim_start_matches('{').strip_suffix('}').unwrap_or(text);
        let mut message = DynamicMessage::parse_text_format(method.input(), text)
            .unwrap_or_else(|error| panic!("{}: {text}: {error}", method.full_name()));
        compare::request(&self.pool, &mut message);
        message.encode_to_vec().into()
    }

    fn show(&self, method: Option<&MethodDescriptor>, message: Bytes) -> String {
        let Some(method) = method else { return format!("{message:?}") };
        let text = match DynamicMessage::decode(method.output(), message) {
            Ok(message) => compare::show(&self.pool, &message),
            Err(error) => format!("not a {}: {error}", method.output().name()),
        };
        text.replace(&self.folder, "$DIR")
    }

    fn message_is(
        &self,
        method: Option<&MethodDescriptor>,
        expected: &str,
        more: bool,
        actual: &Bytes,
    ) -> bool {
        let Some(method) = method else { return false };
        let text = expected.trim_start_matches('{').strip_suffix('}').unwrap_or(expected);
        let expected = DynamicMessage::parse_text_format(method.output(), text)
            .unwrap_or_else(|error| panic!("{}: {text}: {error}", method.output().full_name()));
        DynamicMessage::decode(method.output(), actual.clone())
            .is_ok_and(|actual| compare::message_is(&self.pool, &expected, &actual, more))
    }

    /// Waits until all of these streams hear events, and have nothing more to tell for now.
    async fn heard(&mut self, names: &str) {
        let publish = |kind: &str| {
            let event = corten_api::services::events::PublishRequest {
                topic: "/ready".into(),
                event: Some(corten_types::Any { type_url: kind.into(), value: Vec::new() }),
            };
            let (caller, event) = (self.caller.clone(), Bytes::from(event.encode_to_vec()));
            let with = With { namespace: Some("lab"), lease: None };
            async move { caller.once("/containerd.services.events.v1.Events/Publish", with, event).await }
        };
        for name in names.split(' ') {
            let (_, call) = self.open.get_mut(name).unwrap();
            while tokio::time::timeout(Duration::from_millis(50), call.next()).await.is_err() {
                publish("again").await;
            }
        }
        publish("last").await;
        for name in names.split(' ') {
            let (_, call) = self.open.get_mut(name).unwrap();
            while let Answer::Message(message) = next(call).await {
                if message.windows(4).any(|part| part == b"last") {
                    break;
                }
            }
        }
    }

    /// Plays a row: what came, as lines of a table, and whether that is right.
    async fn play(&mut self, row: &Row) -> (Vec<String>, bool) {
        if let ("heard", Some((_, Step::Send(names)))) = (row.method.as_str(), row.steps.first()) {
            let known = names.split(' ').all(|name| self.open.contains_key(name));
            if known {
                self.heard(names).await;
            }
            return (Vec::new(), known);
        }
        let known = row.name.as_ref().and_then(|name| self.open.remove(name));
        let (method_name, mut call) = match known {
            Some(open) if row.method.is_empty() => open,
            _ if row.method.is_empty() => {
                return (vec!["  the stream is over".into()], false);
            }
            _ => (row.method.clone(), self.begin(row)),
        };
        let method = self.method(&method_name);
        let streams = method.as_ref().is_some_and(MethodDescriptor::is_client_streaming);
        let differs = row.steps.iter().any(|(side, _)| *side == Side::Debian);
        let applies = |side: Side, step: &Step| {
            matches!(step, Step::Send(_) | Step::Close | Step::Cancel)
                || if self.debian { !differs || side == Side::Debian } else { side == Side::Both }
        };
        let steps = row.steps.iter().filter(|(side, step)| applies(*side, step)).map(|(_, step)| step);
        let (mut lines, mut right, mut ended, mut listed) = (Vec::new(), true, false, false);
        for step in steps {
            match step {
                Step::Send(text) => {
                    call.send(self.encode(method.as_ref(), text));
                    if !streams {
                        call.close();
                    }
                }
                Step::Close => call.close(),
                Step::Cancel => return (lines, right),
                Step::Message(expected) => {
                    listed = true;
                    right &= !ended;
                    match next(&mut call).await {
                        Answer::Message(message) => {
                            right &= expected.as_ref().is_none_or(|(expected, more)| {
                                self.message_is(method.as_ref(), expected, *more, &message)
                            });
                            lines.push(format!("  < {}", self.show(method.as_ref(), message)));
                        }
                        Answer::End(status) => {
                            (right, ended) = (false, true);
                            lines.push(format!("  {}", self.status(&status)));
                        }
                    }
                }
                Step::End { code, text } => {
                    call.close();
                    right &= self
                        .end(&mut call, (code, text), listed && !streams, method.as_ref(), &mut lines)
                        .await
                        && !ended;
                    ended = true;
                }
            }
        }
        match &row.name {
            Some(name) if !ended => drop(self.open.insert(name.clone(), (method_name, call))),
            _ if !ended => {
                call.close();
                right &=
                    self.end(&mut call, ("OK", ""), listed && !streams, method.as_ref(), &mut lines).await;
            }
            _ => {}
        }
        (lines, right)
    }

    fn begin(&self, row: &Row) -> Call {
        let path = match self.method(&row.method) {
            Some(method) => corten_tests::dynamic::path(&method),
            None => {
                assert!(row.method.contains('/'), "line {}: no such method: {}", row.line, row.method);
                format!("/{}", row.method)
            }
        };
        self.caller.call(&path, With { namespace: row.namespace.as_deref(), lease: row.lease.as_deref() })
    }

    /// Waits for a call's end. With `strict` no message may come before it.
    async fn end(
        &self,
        call: &mut Call,
        (code, text): (&str, &str),
        strict: bool,
        method: Option<&MethodDescriptor>,
        lines: &mut Vec<String>,
    ) -> bool {
        let mut right = true;
        loop {
            match next(call).await {
                Answer::Message(message) => {
                    right &= !strict;
                    lines.push(format!("  < {}", self.show(method, message)));
                }
                Answer::End(status) => {
                    lines.push(format!("  {}", self.status(&status)));
                    let same = text.is_empty() || compare::text_is(text, &self.text(&status));
                    return right && table::code(status.code() as i32) == code && same;
                }
            }
        }
    }

    fn status(&self, status: &tonic::Status) -> String {
        match (table::code(status.code() as i32), self.text(status)) {
            (code, text) if text.is_empty() => code.into(),
            (code, text) => format!("{code} | {text}"),
        }
    }

    /// The message as a table has it, on one line.
    fn text(&self, status: &tonic::Status) -> String {
        status.message().replace(&self.folder, "$DIR").replace('\n', "\\n")
    }
}

async fn next(call: &mut Call) -> Answer {
    let silence = Answer::End(tonic::Status::cancelled("nothing came"));
    tokio::time::timeout(PATIENCE, call.next()).await.unwrap_or(silence)
}

/// A layer with one file.
fn layer() -> Vec<u8> {
    Layer::new().file("a", 0o644, b"hello").finish()
}

fn values(folder: &str) -> Values {
    let mut values = Values::default();
    values.set("TAR_DIGEST", Digest::sha256(&layer()).to_string());
    values.set("TAR_SIZE", layer().len().to_string());
    values.set("TAR", layer().escape_ascii().to_string());
    values.set("DIR", folder);
    values
}

/// Asks one daemon all of a table, and tells everything that it answers otherwise.
fn hold(name: &str, text: &str, node: &Node, debian: bool) -> Result<(), String> {
    let folder = node.path().display().to_string();
    let mut values = values(&folder);
    // Requests name real paths; what is expected says $DIR.
    let rows = table::read(text, &mut values);
    let record = std::env::var("CORTEN_RECORD").ok();
    let (mut report, mut wrong, mut recorded) = (String::new(), 0, String::new());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut session = Session {
            pool: corten_tests::dynamic::pool(),
            caller: Caller::new(&node.address()),
            debian,
            folder,
            open: HashMap::new(),
        };
        for row in rows.iter().filter(|row| !(debian && row.ours_alone)) {
            let (lines, right) = session.play(row).await;
            if record.is_some() {
                let head = row.source.lines().next().unwrap_or_default();
                let _ = writeln!(recorded, "{}: {head}\n{}", row.line, lines.join("\n"));
            }
            if !right {
                wrong += 1;
                let _ =
                    writeln!(report, "line {}: {}--- answered\n{}\n", row.line, row.source, lines.join("\n"));
            }
        }
    });
    if let Some(to) = record {
        let side = if debian { "debian" } else { "ours" };
        std::fs::create_dir_all(&to).unwrap();
        std::fs::write(format!("{to}/{name}.{side}"), recorded).unwrap();
        return Ok(());
    }
    if wrong > 0 {
        Err(format!("{wrong} of {} rows of {name} are otherwise:\n{report}", rows.len()))
    } else {
        Ok(())
    }
}

/// Tables are read when tests run, so that changing one needs no compiler.
fn read(name: &str) -> String {
    let path = corten_tests::peers::workspace().join(format!("tests/suites/conformance/{name}.txt"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn on_ours(name: &str) {
    let node = Node::start();
    let held = hold(name, &read(name), &node, false);
    assert!(!node.log().contains("panicked"), "{}", node.log());
    node.finish();
    held.unwrap_or_else(|error| panic!("{error}"));
}

fn on_debians(name: &str) {
    let node = Node::peer(&Peers::find().containerd_2_1()).start();
    let held = hold(name, &read(name), &node, true);
    node.finish();
    held.unwrap_or_else(|error| panic!("{error}"));
}

macro_rules! tables {
    ($($name:ident)*) => {
        mod our_daemon_answers {
            $(#[test] fn $name() { super::on_ours(stringify!($name)); })*
        }
        mod debians_daemon_answers {
            $(#[test] fn $name() { super::on_debians(stringify!($name)); })*
        }
    };
}

tables! {
    common containers content controller diff events filters images introspection leases mounts namespaces
    sandboxes snapshots streaming tasks transfer writes
}
