//! Reads a command line as the original does (spec 05 §1) over the definitions of the commands: flags end at the
//! first word that is none, `-flag` is `--flag`, values follow `=` or the next word, what is too much is ignored.
//! The result is a plain line that the definitions can be filled from.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use clap::{Arg, ArgAction, Command};

/// What a command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Reading {
    /// A command with its path; the words are in the form that the definitions read.
    Run { path: Vec<String>, words: Vec<OsString>, typed: Vec<(String, String)> },
    /// The version.
    Version,
    /// Help about the command at this path.
    Help { path: Vec<String> },
    /// A command that does not exist, below this path.
    Topic { path: Vec<String>, name: String },
    /// A flag that cannot be read.
    Refuse { path: Vec<String>, message: String },
}

/// Reads the words behind the program's name.
pub fn read(root: &Command, words: impl IntoIterator<Item = OsString>) -> Reading {
    let mut reader = Reader {
        words: words.into_iter().collect::<Vec<_>>().into(),
        out: vec!["ctr".into()],
        typed: Vec::new(),
    };
    let (mut command, mut path) = (root, Vec::new());
    loop {
        if path == ["plugins"] {
            reader.list_plugins();
        }
        let flags = match reader.flags(command) {
            Ok(flags) => flags,
            Err(message) => return Reading::Refuse { path, message },
        };
        if flags.help {
            return Reading::Help { path };
        }
        if flags.version {
            return Reading::Version;
        }
        if !command.has_subcommands() {
            if reader.words.front().is_some_and(|word| word == "help" || word == "h") {
                return Reading::Help { path };
            }
            reader.positionals(command);
            return Reading::Run { path, words: reader.out, typed: reader.typed };
        }
        let name = match reader.words.pop_front() {
            Some(name) if !name.is_empty() => name.to_string_lossy().into_owned(),
            _ => return Reading::Help { path },
        };
        if name == "help" || name == "h" {
            return help(command, path, reader.words.front());
        }
        let Some(next) = find(command, &name) else { return Reading::Topic { path, name } };
        reader.out.push(next.get_name().into());
        path.push(next.get_name().to_owned());
        command = next;
    }
}

fn help(command: &Command, mut path: Vec<String>, about: Option<&OsString>) -> Reading {
    let Some(name) = about.map(|name| name.to_string_lossy().into_owned()) else {
        return Reading::Help { path };
    };
    match find(command, &name) {
        Some(found) => {
            path.push(found.get_name().to_owned());
            Reading::Help { path }
        }
        None => Reading::Topic { path, name },
    }
}

/// The command of a name, which may be an alias.
pub fn find<'a>(command: &'a Command, name: &str) -> Option<&'a Command> {
    command
        .get_subcommands()
        .find(|one| one.get_name() == name || one.get_all_aliases().any(|alias| alias == name))
}

/// The command at a path; the root where it does not exist.
pub fn at<'a>(root: &'a Command, path: &[String]) -> &'a Command {
    path.iter().fold(root, |command, name| find(command, name).unwrap_or(command))
}

/// All spellings of a flag, the main one first, without dashes.
pub fn spellings(arg: &Arg) -> Vec<String> {
    let long = arg.get_long().map(str::to_owned);
    let longs = arg.get_all_aliases().unwrap_or_default().into_iter().map(str::to_owned);
    let short = arg.get_short().map(String::from);
    let shorts = arg.get_all_short_aliases().unwrap_or_default().into_iter().map(String::from);
    long.into_iter().chain(longs).chain(short).chain(shorts).collect()
}

#[derive(Default)]
struct Flags {
    help: bool,
    version: bool,
}

struct Reader {
    words: std::collections::VecDeque<OsString>,
    out: Vec<OsString>,
    typed: Vec<(String, String)>,
}

/// One flag as it was written: its definition (none for help), its spelling, its value.
struct Written<'a> {
    arg: Option<&'a Arg>,
    name: String,
    value: Option<OsString>,
}

impl Reader {
    /// In the first version `plugins` had no sub-commands, only the flags that now are those of `list`.
    fn list_plugins(&mut self) {
        let old = |word: &OsString| {
            matches!(
                word.to_str().map(|word| word.trim_start_matches('-')),
                Some("q" | "quiet" | "d" | "detailed")
            ) && word.as_bytes().starts_with(b"-")
        };
        if self.words.front().is_some_and(old) {
            self.words.push_front("list".into());
        }
    }

    /// Takes flags up to the first word that is none.
    fn flags(&mut self, command: &Command) -> Result<Flags, String> {
        let mut written: Vec<Written> = Vec::new();
        while let Some(one) = self.flag(command)? {
            written.push(one);
        }
        let mut flags = Flags::default();
        let mut emitted: Vec<(&Arg, OsString)> = Vec::new();
        for one in &written {
            let Some(arg) = one.arg else {
                flags.help = boolean(one)?;
                continue;
            };
            let first =
                spellings(arg).into_iter().find(|name| written.iter().any(|other| other.name == *name));
            if let Some(first) = first.filter(|first| *first != one.name) {
                return Err(format!("Cannot use two forms of the same flag: {} {first}", one.name));
            }
            self.typed.push((spellings(arg).swap_remove(0), one.name.clone()));
            let is_switch = matches!(arg.get_action(), ArgAction::SetTrue);
            let on = is_switch && boolean(one)?;
            if arg.get_id() == "version" && is_switch {
                flags.version = on;
                continue;
            }
            if !matches!(arg.get_action(), ArgAction::Append) {
                // The last one holds.
                emitted.retain(|(known, _)| known.get_id() != arg.get_id());
            }
            if on {
                emitted.push((arg, spell(arg, None)));
            } else if !is_switch {
                emitted.push((arg, spell(arg, one.value.as_deref())));
            }
        }
        self.out.extend(emitted.into_iter().map(|(_, word)| word));
        Ok(flags)
    }

    /// The next flag, as Go's flag package reads it.
    fn flag<'a>(&mut self, command: &'a Command) -> Result<Option<Written<'a>>, String> {
        let Some(word) = self.words.front() else { return Ok(None) };
        let bytes = word.as_bytes();
        if bytes.len() < 2 || bytes[0] != b'-' {
            return Ok(None);
        }
        if bytes == b"--" {
            self.words.pop_front();
            return Ok(None);
        }
        let body = if bytes.starts_with(b"--") { &bytes[2..] } else { &bytes[1..] };
        if body.is_empty() || body[0] == b'-' || body[0] == b'=' {
            return Err(format!("bad flag syntax: {}", word.to_string_lossy()));
        }
        let split = body.iter().position(|byte| *byte == b'=');
        let name = String::from_utf8_lossy(&body[..split.unwrap_or(body.len())]).into_owned();
        let mut value = split.map(|at| OsString::from_vec(body[at + 1..].to_vec()));
        let arg = command
            .get_arguments()
            .find(|arg| !arg.is_positional() && spellings(arg).contains(&name) && arg.get_id() != "help");
        let is_help = name == "help" || name == "h";
        if arg.is_none() && !is_help {
            return Err(format!("flag provided but not defined: -{name}"));
        }
        self.words.pop_front();
        let takes_value = arg.is_some_and(|arg| !matches!(arg.get_action(), ArgAction::SetTrue));
        if takes_value && value.is_none() {
            value = self.words.pop_front();
            if value.is_none() {
                return Err(format!("flag needs an argument: -{name}"));
            }
        }
        Ok(Some(Written { arg, name, value }))
    }

    /// The words behind the flags, as many as are of use.
    fn positionals(&mut self, command: &Command) {
        let endless = command.get_positionals().any(|arg| matches!(arg.get_action(), ArgAction::Append));
        let most = if endless { usize::MAX } else { command.get_positionals().count() };
        let words: Vec<OsString> = self.words.drain(..).take(most).collect();
        if !words.is_empty() {
            self.out.push("--".into());
            self.out.extend(words);
        }
    }
}

fn boolean(flag: &Written) -> Result<bool, String> {
    let Some(value) = &flag.value else { return Ok(true) };
    match value.to_str() {
        Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        _ => {
            let text = value.to_string_lossy();
            Err(format!("invalid boolean value {text:?} for -{}: parse error", flag.name))
        }
    }
}

/// A flag in one word.
fn spell(arg: &Arg, value: Option<&OsStr>) -> OsString {
    let mut word = OsString::new();
    match (arg.get_long(), arg.get_short()) {
        (Some(long), _) => word.push(format!("--{long}")),
        (None, Some(short)) => word.push(format!("-{short}")),
        (None, None) => {}
    }
    if let Some(value) = value {
        word.push("=");
        word.push(value);
    }
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Reading {
        let root = crate::all_definitions();
        read(&root, line.split(' ').map(Into::into))
    }

    fn refused(line: &str) -> String {
        match parse(line) {
            Reading::Refuse { message, .. } => message,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn flags_are_gos() {
        let words = |line: &str| match parse(line) {
            Reading::Run { words, .. } => {
                words.iter().map(|word| word.to_string_lossy().into_owned()).collect()
            }
            other => panic!("{line}: {other:?}"),
        };
        let run: Vec<String> =
            words("-n lab run -rm -env A=1 --env=B=2,3 --tty=false img id sh -c --rm -- x");
        let expected = "ctr --namespace=lab run --rm --env=A=1 --env=B=2,3 -- img id sh -c --rm -- x";
        assert_eq!(run.join(" "), expected);
        let last: Vec<String> = words("run --hostname a --hostname b -- img");
        assert_eq!(last.join(" "), "ctr run --hostname=b -- img");
        let old: Vec<String> = words("plugins -q id==x");
        assert_eq!(old.join(" "), "ctr plugins list --quiet -- id==x", "as in the first version");
        let extra: Vec<String> = words("c info a b c");
        assert_eq!(extra.join(" "), "ctr containers info -- a", "what is too much is ignored");
    }

    #[test]
    fn mistakes_are_told_in_gos_words() {
        assert_eq!(refused("run --foo"), "flag provided but not defined: -foo");
        assert_eq!(refused("run --env"), "flag needs an argument: -env");
        assert_eq!(refused("c ls ---q"), "bad flag syntax: ---q");
        assert_eq!(refused("c ls -=q"), "bad flag syntax: -=q");
        assert_eq!(refused("c ls --quiet=foo"), "invalid boolean value \"foo\" for -quiet: parse error");
        assert_eq!(refused("-n a --namespace b c ls"), "Cannot use two forms of the same flag: n namespace");
        assert_eq!(parse("nope"), Reading::Topic { path: vec![], name: "nope".into() });
        assert_eq!(
            parse("c help nope"),
            Reading::Topic { path: vec!["containers".into()], name: "nope".into() }
        );
        assert_eq!(parse("c"), Reading::Help { path: vec!["containers".into()] });
        assert_eq!(parse("help c"), Reading::Help { path: vec!["containers".into()] });
        assert_eq!(parse("-v c"), Reading::Version);
    }

    proptest::proptest! {
        #[test]
        fn any_words_are_read(words in proptest::collection::vec("(run|c|ls|--?[a-z=]{0,6}|-|--|[a-z]{1,3})", 0..8)) {
            let root = crate::all_definitions();
            read(&root, words.into_iter().map(Into::into));
        }
    }
}
