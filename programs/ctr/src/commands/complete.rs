//! `complete`: what may stand where somebody types, for the scripts that complete in shells. It reads the definitions
//! of the commands, and asks the daemon for names.

use std::time::Duration;

use clap::{Arg, ArgAction, Args, Command, FromArgMatches};
use corten_api::services as api;
use corten_types::Result;

use crate::arguments::{find, spellings};
use crate::client::{Client, Daemon, error};
use crate::commands::snapshots;

/// Who presses Tab does not wait for longer.
const PATIENCE: Duration = Duration::from_secs(2);

/// What may stand at the end of a command line.
#[derive(Debug, Args)]
pub struct Complete {
    /// The words so far, the program's name first; the last is being typed.
    words: Vec<String>,
}

/// A word, and what it is for.
type Candidate = (String, String);

/// What is known of a command line that is being typed.
struct Line<'a> {
    command: &'a Command,
    path: Vec<&'a str>,
    /// A flag that waits for its value.
    flag: Option<&'a Arg>,
    /// Words of the command that are no flags.
    count: usize,
    /// Flags before the command, for the connection.
    global: Vec<String>,
    snapshotter: String,
}

impl Complete {
    pub async fn run(self) {
        let root = crate::all_definitions();
        let Some((typed, before)) = self.words.split_last() else { return };
        let line = Line::read(&root, before.get(1..).unwrap_or_default());
        for (word, about) in line.candidates(typed).await {
            let about = about.lines().next().unwrap_or_default().trim_end_matches('.');
            if about.is_empty() { println!("{word}") } else { println!("{word}\t{about}") }
        }
    }
}

impl<'a> Line<'a> {
    fn read(root: &'a Command, words: &[String]) -> Self {
        let mut line = Self {
            command: root,
            path: Vec::new(),
            flag: None,
            count: 0,
            global: Vec::new(),
            snapshotter: String::new(),
        };
        for word in words {
            if let Some(flag) = line.flag.take() {
                line.note(flag, word);
            } else if word.starts_with('-') && word.len() > 1 && line.count == 0 {
                line.take_flag(word);
            } else if !line.command.has_subcommands() {
                line.count += 1;
            } else if let Some(next) = find(line.command, word) {
                line.command = next;
                line.path.push(next.get_name());
            } else {
                line.count += 1;
            }
        }
        line
    }

    fn take_flag(&mut self, word: &str) {
        let body = word.trim_start_matches('-');
        let (name, value) = body.split_once('=').map_or((body, None), |(name, value)| (name, Some(value)));
        let Some(flag) = flag(self.command, name) else { return };
        match value {
            Some(value) => self.note(flag, value),
            None if takes_value(flag) => self.flag = Some(flag),
            None => {}
        }
    }

    /// A flag has a value: those for the connection are of use.
    fn note(&mut self, flag: &Arg, value: &str) {
        match flag.get_id().as_str() {
            "snapshotter" => self.snapshotter = value.to_owned(),
            name if self.path.is_empty() => self.global.push(format!("--{}={value}", name.replace('_', "-"))),
            _ => {}
        }
    }

    async fn candidates(&self, typed: &str) -> Vec<Candidate> {
        let begins = |(word, _): &Candidate| word.starts_with(typed);
        if let Some(flag) = self.flag {
            return self.values(flag).await.into_iter().filter(begins).collect();
        }
        if let Some((name, _)) = typed.strip_prefix("--").and_then(|body| body.split_once('=')) {
            let Some(flag) = flag(self.command, name) else { return Vec::new() };
            let whole = |(value, about): Candidate| (format!("--{name}={value}"), about);
            return self.values(flag).await.into_iter().map(whole).filter(begins).collect();
        }
        if typed.starts_with('-') && self.count == 0 {
            return flags(self.command).into_iter().filter(begins).collect();
        }
        if self.command.has_subcommands() {
            return subcommands(self.command).into_iter().filter(begins).collect();
        }
        self.live(self.objects()).await.into_iter().filter(begins).collect()
    }

    /// What the values of a flag may be.
    async fn values(&self, flag: &Arg) -> Vec<Candidate> {
        let known = flag.get_possible_values();
        if !known.is_empty() {
            let about =
                |help: Option<&clap::builder::StyledStr>| help.map(ToString::to_string).unwrap_or_default();
            return known.iter().map(|one| (one.get_name().to_owned(), about(one.get_help()))).collect();
        }
        self.live(match flag.get_id().as_str() {
            "namespace" => &[Kind::Namespace],
            "snapshotter" => &[Kind::Snapshotter],
            "network" => &[Kind::Network],
            "sandbox" => &[Kind::Sandbox],
            _ => &[],
        })
        .await
    }

    /// What the words of a command are names of.
    fn objects(&self) -> &'static [Kind] {
        match (self.path.as_slice(), self.count) {
            (["run"] | ["containers", "create"] | ["install"], 0) => &[Kind::Image],
            (["images", "import" | "pull" | "unmount"], _) => &[],
            (["images", "export"], 0) => &[],
            (["images", _], _) => &[Kind::Image],
            (["tasks", "exec" | "start"] | ["containers", "checkpoint" | "label" | "info"], 1..) => &[],
            (["tasks", "start"], _) => &[Kind::Container],
            (["tasks", _] | ["stats" | "top"], _) => &[Kind::Task],
            (["containers", "list" | "restore" | "create"], _) => &[],
            (["containers", _] | ["stop" | "logs" | "diff"], _) => &[Kind::Container],
            (["cp"], _) => &[Kind::Files],
            (["inspect"], _) => &[Kind::Container, Kind::Image],
            (["namespaces", "remove" | "label"], _) => &[Kind::Namespace],
            (["leases", "delete"], _) => &[Kind::Lease],
            (["content", "get" | "delete" | "label" | "edit"], _) => &[Kind::Blob],
            (["snapshots", "list" | "tree" | "unpack"], _) => &[],
            (["snapshots", _], _) => &[Kind::Snapshot],
            (["sandboxes", "remove" | "info"], _) => &[Kind::Sandbox],
            (["network", "connect" | "disconnect"], 1) => &[Kind::Task],
            (["network", "inspect" | "remove" | "connect" | "disconnect"], _) => &[Kind::Network],
            _ => &[],
        }
    }

    /// Names that the daemon knows; none where it cannot be asked.
    async fn live(&self, kinds: &[Kind]) -> Vec<Candidate> {
        let Some(client) = self.client().filter(|_| !kinds.is_empty()) else { return Vec::new() };
        let asked = async {
            let mut found = Vec::new();
            if kinds == [Kind::Network] {
                return super::network::names();
            }
            let daemon = client.dial().await?;
            for kind in kinds {
                found.extend(kind.names(&daemon, &self.snapshotter).await?);
            }
            Ok(found)
        };
        let found: Result<Vec<Candidate>> =
            tokio::time::timeout(PATIENCE, asked).await.unwrap_or(Ok(Vec::new()));
        found.unwrap_or_default()
    }

    fn client(&self) -> Option<Client> {
        let words = std::iter::once("ctr".to_owned()).chain(self.global.iter().cloned());
        let matches = crate::definitions(|_| false).try_get_matches_from(words).ok()?;
        Some(Client::new(&crate::Global::from_arg_matches(&matches).ok()?))
    }
}

/// What the daemon has names of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Blob,
    Container,
    /// Files of containers: `ID:`.
    Files,
    Image,
    Lease,
    Namespace,
    Network,
    Sandbox,
    Snapshot,
    Snapshotter,
    Task,
}

impl Kind {
    async fn names(self, daemon: &Daemon, snapshotter: &str) -> Result<Vec<Candidate>> {
        let plain = |name: String| (name, String::new());
        Ok(match self {
            Self::Container | Self::Files => {
                let request = api::containers::ListContainersRequest::default();
                let found = daemon.containers().list(request).await.map_err(error)?.into_inner().containers;
                let end = if self == Self::Files { ":" } else { "" };
                found.into_iter().map(|one| (format!("{}{end}", one.id), one.image)).collect()
            }
            Self::Image => {
                let request = api::images::ListImagesRequest::default();
                let found = daemon.images().list(request).await.map_err(error)?.into_inner().images;
                found.into_iter().map(|one| plain(one.name)).collect()
            }
            Self::Task => {
                let request = api::tasks::ListTasksRequest::default();
                let found = daemon.tasks().list(request).await.map_err(error)?.into_inner().tasks;
                let state = |status: corten_api::task_types::Status| status.as_str_name().to_lowercase();
                found.into_iter().map(|one| (one.id.clone(), state(one.status()))).collect()
            }
            Self::Namespace => {
                let request = api::namespaces::ListNamespacesRequest::default();
                let found = daemon.namespaces().list(request).await.map_err(error)?.into_inner().namespaces;
                found.into_iter().map(|one| plain(one.name)).collect()
            }
            Self::Lease => {
                let request = api::leases::ListRequest::default();
                let found = daemon.leases().list(request).await.map_err(error)?.into_inner().leases;
                found.into_iter().map(|one| plain(one.id)).collect()
            }
            Self::Blob => {
                let request = api::content::ListContentRequest::default();
                let mut stream = daemon.content().list(request).await.map_err(error)?.into_inner();
                let mut found = Vec::new();
                while let Some(block) = stream.message().await.map_err(error)? {
                    let about = |size| crate::output::decimal_size(size);
                    found.extend(block.info.into_iter().map(|one| (one.digest, about(one.size))));
                }
                found
            }
            Self::Snapshot => {
                let named = crate::container::snapshotter(daemon, snapshotter).await?;
                snapshots::list(daemon, &named).await?.into_iter().map(|one| plain(one.name)).collect()
            }
            Self::Snapshotter => {
                let filters = vec!["type==io.containerd.snapshotter.v1".into()];
                let request = api::introspection::PluginsRequest { filters };
                let found =
                    daemon.introspection().plugins(request).await.map_err(error)?.into_inner().plugins;
                found.into_iter().filter(|one| one.init_err.is_none()).map(|one| plain(one.id)).collect()
            }
            Self::Sandbox => {
                let request = api::sandbox::StoreListRequest::default();
                let found = daemon.sandboxes().list(request).await.map_err(error)?.into_inner().list;
                found.into_iter().map(|one| plain(one.sandbox_id)).collect()
            }
            Self::Network => super::network::names()?,
        })
    }
}

fn flag<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    command.get_arguments().find(|arg| !arg.is_positional() && spellings(arg).iter().any(|one| one == name))
}

fn takes_value(flag: &Arg) -> bool {
    !matches!(flag.get_action(), ArgAction::SetTrue)
}

fn flags(command: &Command) -> Vec<Candidate> {
    let shown = command.get_arguments().filter(|arg| !arg.is_positional() && !arg.is_hide_set());
    let dashed =
        |name: String| if name.chars().count() == 1 { format!("-{name}") } else { format!("--{name}") };
    let all = shown.flat_map(|arg| {
        let about = arg.get_help().map(ToString::to_string).unwrap_or_default();
        spellings(arg).into_iter().map(move |name| (dashed(name), about.clone()))
    });
    all.chain([("--help".to_owned(), "Show help".to_owned())]).collect()
}

fn subcommands(command: &Command) -> Vec<Candidate> {
    let shown = command.get_subcommands().filter(|one| !one.is_hide_set());
    let all = shown.flat_map(|one| {
        let about = one.get_about().map(ToString::to_string).unwrap_or_default();
        let names = std::iter::once(one.get_name()).chain(one.get_all_aliases());
        names.map(move |name| (name.to_owned(), about.clone())).collect::<Vec<_>>()
    });
    all.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(words: &str, check: impl FnOnce(Line<'_>)) {
        let root = crate::all_definitions();
        let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
        check(Line::read(&root, &words));
    }

    #[test]
    fn lines_are_read_as_far_as_they_go() {
        line("-n lab -a /x c rm a", |line| {
            assert_eq!(line.path, ["containers", "delete"]);
            assert_eq!(line.global, ["--namespace=lab", "--address=/x"]);
            assert_eq!((line.objects(), line.count), (&[Kind::Container][..], 1));
        });
        line("run --rm --snapshotter native", |line| {
            assert_eq!((line.objects(), line.snapshotter.as_str()), (&[Kind::Image][..], "native"));
        });
        line("run image id", |line| assert_eq!(line.objects(), []));
        line("c ls --format", |line| assert!(line.flag.is_some()));
        line("nope ls", |line| assert_eq!(line.count, 2));
    }

    #[tokio::test]
    async fn commands_flags_and_values_are_known_without_a_daemon() {
        let root = crate::all_definitions();
        let candidates = async |words: &str, typed: &str| -> Vec<String> {
            let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
            let found = Line::read(&root, &words).candidates(typed).await;
            found.into_iter().map(|(word, _)| word).collect()
        };
        assert_eq!(candidates("", "conta").await, ["containers", "container"]);
        assert_eq!(candidates("c", "chec").await, ["checkpoint"]);
        assert_eq!(candidates("run", "--rlim").await, ["--rlimit-nofile"]);
        assert_eq!(candidates("c ls --format", "").await, ["table", "json", "yaml", "plain"]);
        assert_eq!(candidates("c ls", "--format=j").await, ["--format=json"]);
        assert_eq!(candidates("run -a /nope/nope", "").await, Vec::<String>::new());
    }
}
