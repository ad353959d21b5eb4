//! What to do next, for people: told on terminals only.

use clap::Command;
use corten_types::{Error, ErrorClass};

/// Advice about an error: its own, or that for errors of its kind.
pub fn about(error: &Error) -> Option<String> {
    if let Some(hint) = error.hint() {
        return Some(hint.to_owned());
    }
    let message = error.message();
    let hint = match error.class() {
        ErrorClass::NotFound if message.starts_with("image ") => {
            "images have their full names here: `ctr images ls -q` lists them, `ctr images pull NAME` brings one"
        }
        ErrorClass::NotFound if message.starts_with("container ") => {
            "`ctr containers ls` lists them; other namespaces have their own: `ctr namespaces ls`, `ctr -n NAME …`"
        }
        ErrorClass::NotFound if message.contains("no running task") => "start it: ctr tasks start ID",
        ErrorClass::AlreadyExists
            if message.starts_with("container ") || message.starts_with("snapshot ") =>
        {
            "remove the old one with `ctr containers rm ID`, or take another id"
        }
        ErrorClass::PermissionDenied => "may you do this? Try it as root",
        ErrorClass::DeadlineExceeded => "the daemon did not answer in time; --timeout says how long to wait",
        ErrorClass::Unavailable => "is the daemon running? `ctr check` tells what is missing",
        _ if message.starts_with("cannot delete a non stopped container") => {
            "stop it first: `ctr stop ID`, or `ctr tasks rm --force ID`"
        }
        _ if message.starts_with("task must be stopped") => "stop it first: `ctr stop ID`, or add --force",
        _ => return None,
    };
    Some(hint.to_owned())
}

/// The command that somebody may have meant.
pub fn meant(command: &Command, typed: &str) -> Option<String> {
    let names = command.get_subcommands().filter(|one| !one.is_hide_set());
    let names = names.flat_map(|one| std::iter::once(one.get_name()).chain(one.get_all_aliases()));
    nearest(names, typed)
}

/// The flag that somebody may have meant, without dashes.
pub fn meant_flag(command: &Command, typed: &str) -> Option<String> {
    let shown = command.get_arguments().filter(|arg| !arg.is_positional() && !arg.is_hide_set());
    nearest(shown.filter_map(clap::Arg::get_long), typed)
}

fn nearest<'a>(names: impl Iterator<Item = &'a str>, typed: &str) -> Option<String> {
    let near = names.map(|name| (distance(name, typed), name)).min()?;
    (near.0 <= 2 && near.0 < typed.chars().count()).then(|| near.1.to_owned())
}

/// How many letters must change (Levenshtein).
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (line, a) in left.chars().enumerate() {
        let mut next = vec![line + 1];
        for (column, b) in right.iter().enumerate() {
            let change = row[column] + usize::from(a != *b);
            next.push(change.min(row[column + 1] + 1).min(next[column] + 1));
        }
        row = next;
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_found_and_far_ones_are_not() {
        let root = crate::all_definitions();
        assert_eq!(meant(&root, "imgaes").as_deref(), Some("images"));
        assert_eq!(meant(&root, "contaner").as_deref(), Some("container"));
        assert_eq!(meant(&root, "xyzzy"), None);
        assert_eq!(meant_flag(&root, "namspace").as_deref(), Some("namespace"));
        assert_eq!(meant_flag(&root, "x"), None);
        assert_eq!([distance("", "ab"), distance("kitten", "sitting")], [2, 3]);
    }
}
