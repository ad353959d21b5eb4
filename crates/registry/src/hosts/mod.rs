//! Which hosts serve a registry's name: mirrors first, as `hosts.toml` lists them (spec 03 §7).

mod config;
mod defaults;

pub(crate) use defaults::is_localhost;

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::url::{Scheme, Url};

/// What a host may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Blobs and manifests by digest.
    pub pull: bool,
    /// Tags.
    pub resolve: bool,
    /// Uploads.
    pub push: bool,
    /// Listing of what refers to a manifest.
    pub referrers: bool,
}

impl Capabilities {
    /// Everything, which is the default.
    pub const ALL: Self = Self { pull: true, resolve: true, push: true, referrers: true };
    /// Nothing.
    pub const NONE: Self = Self { pull: false, resolve: false, push: false, referrers: false };
}

/// How the peer of a TLS connection is checked, and how we identify ourselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Files with certificates of authorities that are trusted beside the system's.
    pub ca: Vec<PathBuf>,
    /// Certificate and key files; without a key file the certificate's file holds both.
    pub client: Vec<(PathBuf, Option<PathBuf>)>,
    /// Whether any certificate is accepted; nothing when not said.
    pub skip_verify: Option<bool>,
}

impl Tls {
    /// Whether anything is said.
    #[must_use]
    pub fn is_set(&self) -> bool {
        !self.ca.is_empty() || !self.client.is_empty() || self.skip_verify.is_some()
    }

    /// These options, and where they say nothing those of `base`.
    #[must_use]
    pub fn over(mut self, base: &Self) -> Self {
        self.ca.extend(base.ca.iter().cloned());
        self.client.extend(base.client.iter().cloned());
        self.skip_verify = self.skip_verify.or(base.skip_verify);
        self
    }
}

/// One server that may be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// How it is spoken to.
    pub scheme: Scheme,
    /// `host` or `host:port`.
    pub authority: String,
    /// Where the protocol starts, usually `/v2`; never ends in a slash.
    pub path: String,
    /// What it may be asked for.
    pub capabilities: Capabilities,
    /// Header lines sent with each request to it.
    pub headers: Vec<(String, String)>,
    /// TLS options.
    pub tls: Tls,
    /// Time to connect; nothing for the default.
    pub dial_timeout: Option<Duration>,
    /// Whether plain HTTP is spoken when it turns out that the peer knows no TLS.
    pub http_fallback: bool,
}

impl Host {
    /// The address of `what` (`manifests/1.0`) of a repository.
    #[must_use]
    pub fn url(&self, repository: &str, what: &str, query: &str) -> Url {
        let target = format!("{}/{repository}/{what}{query}", self.path);
        Url::new(self.scheme, self.authority.clone(), &target)
    }

    /// Whether this is another name of `registry`, so that it is no mirror of it.
    #[must_use]
    pub fn is_origin(&self, registry: &str) -> bool {
        self.authority == registry || (registry == "docker.io" && self.authority == defaults::DOCKER_IO)
    }
}

/// Where and how hosts are looked up.
#[derive(Clone, Debug, Default)]
pub struct HostOptions {
    /// Roots of certs.d, the first one with a folder for the host counts.
    pub dirs: Vec<PathBuf>,
    /// `http` or `https` for the hosts that nothing else says it for.
    pub default_scheme: Option<Scheme>,
    /// TLS options for all hosts, below those of hosts.toml.
    pub tls: Tls,
}

/// The hosts that serve `registry` (`host[:port]` of a reference), in the order in which they are asked;
/// the last one is the registry itself. Reads hosts.toml anew; what is wrong in it is logged and ignored.
#[must_use]
pub fn lookup(registry: &str, options: &HostOptions) -> Vec<Host> {
    let folder = find_folder(registry, &options.dirs);
    let configured = folder.as_deref().map(config::load).unwrap_or_default();
    let mut hosts: Vec<Host> = Vec::with_capacity(configured.mirrors.len() + 1);
    for entry in configured.mirrors {
        hosts.push(defaults::complete(entry, None, options));
    }
    hosts.push(defaults::complete(configured.server, Some(registry), options));
    hosts
}

/// The folder of a registry: `h_p_`, `h:p` (or `h`), `_default`, in the first root that has one.
fn find_folder(registry: &str, dirs: &[PathBuf]) -> Option<PathBuf> {
    // The name comes from a reference, hence from anybody: it must stay one component.
    if registry.is_empty() || registry.contains(['/', '\\', '\0']) || registry == "." || registry == ".." {
        return None;
    }
    let mut names = Vec::new();
    if let Some((host, port)) = registry.rsplit_once(':') {
        names.push(format!("{host}_{port}_"));
    }
    names.push(registry.to_owned());
    names.push("_default".to_owned());
    dirs.iter()
        .flat_map(|root| names.iter().map(move |name| Path::new(root).join(name)))
        .find(|dir| dir.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> (tempfile::TempDir, HostOptions) {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let options = HostOptions { dirs: vec![root.path().to_owned()], ..Default::default() };
        (root, options)
    }

    fn shown(hosts: &[Host]) -> Vec<String> {
        hosts
            .iter()
            .map(|host| format!("{}://{}{}", host.scheme.as_str(), host.authority, host.path))
            .collect()
    }

    #[test]
    fn without_configuration_the_registry_itself_is_asked() {
        let options = HostOptions::default();
        for (registry, want, fallback) in [
            ("docker.io", "https://registry-1.docker.io/v2", false),
            ("example.org", "https://example.org/v2", false),
            ("localhost", "https://localhost/v2", false),
            ("localhost:443", "https://localhost:443/v2", false),
            ("localhost:80", "http://localhost:80/v2", false),
            ("127.0.0.1:5000", "https://127.0.0.1:5000/v2", true),
            ("[::1]:5000", "https://[::1]:5000/v2", true),
        ] {
            let hosts = lookup(registry, &options);
            assert_eq!(shown(&hosts), [want]);
            assert_eq!(hosts[0].http_fallback, fallback, "{registry}");
        }
        assert_eq!(lookup("localhost:5000", &options)[0].tls.skip_verify, Some(true));
        assert_eq!(lookup("localhost:80", &options)[0].tls.skip_verify, None);
    }

    #[test]
    fn a_default_scheme_overrides() {
        let options = HostOptions { default_scheme: Some(Scheme::Http), ..Default::default() };
        let hosts = lookup("localhost:5000", &options);
        assert_eq!(shown(&hosts), ["http://localhost:5000/v2"]);
        assert!(!hosts[0].http_fallback);
        assert_eq!(shown(&lookup("example.org", &options)), ["http://example.org/v2"]);
    }

    #[test]
    fn hosts_are_asked_in_file_order_then_the_server() {
        let text = r#"
server = "https://upstream.example/base"
capabilities = ["pull"]
ca = "ca.pem"

[host."https://z.example"]
  capabilities = ["Pull", "resolve"]
  skip_verify = true
  dial_timeout = "1m500ms"
  client = [["c.pem", "k.pem"], ["/both.pem", ""]]
  [host."https://z.example".header]
    x-one = "1"
    x-two = ["a", "b"]

[host."http://a.example:5000/prefix/v2"]
  client = "one.pem"

[host."m.example/verbatim/"]
  override_path = true
"#;
        let (root, options) = folder(&[("reg.example/hosts.toml", text)]);
        let dir = root.path().join("reg.example");
        let hosts = lookup("reg.example", &options);
        assert_eq!(
            shown(&hosts),
            [
                "https://z.example/v2",
                // A client certificate puts the protocol of an http address in doubt.
                "https://a.example:5000/prefix/v2",
                "https://m.example/verbatim",
                "https://upstream.example/base/v2"
            ]
        );
        assert!(hosts[0].capabilities.pull && hosts[0].capabilities.resolve && !hosts[0].capabilities.push);
        assert_eq!(hosts[0].tls.skip_verify, Some(true));
        assert_eq!(hosts[0].dial_timeout, Some(Duration::from_millis(60_500)));
        assert_eq!(
            hosts[0].tls.client,
            [(dir.join("c.pem"), Some(dir.join("k.pem"))), (PathBuf::from("/both.pem"), None)]
        );
        let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(hosts[0].headers, [header("x-one", "1"), header("x-two", "a"), header("x-two", "b")]);
        assert_eq!(hosts[1].tls.client, [(dir.join("one.pem"), None)]);
        assert!(!hosts[1].capabilities.eq(&Capabilities::NONE));
        assert_eq!(hosts[3].tls.ca, [dir.join("ca.pem")]);
        assert!(!hosts[3].capabilities.resolve);
    }

    #[test]
    fn an_http_mirror_with_tls_options_is_tried_with_tls_first() {
        let text = "[host.\"http://m.example:5000\"]\nskip_verify = true\n[host.\"http://n.example\"]\n";
        let (_root, options) = folder(&[("_default/hosts.toml", text)]);
        let hosts = lookup("docker.io", &options);
        assert_eq!(
            shown(&hosts),
            ["https://m.example:5000/v2", "http://n.example/v2", "https://registry-1.docker.io/v2"]
        );
        assert!(hosts[0].http_fallback && !hosts[1].http_fallback);
    }

    #[test]
    fn the_first_folder_wins() {
        let (_root, options) = folder(&[
            ("h_5000_/hosts.toml", "server = 'https://one'"),
            ("h:5000/hosts.toml", "server = 'https://two'"),
            ("_default/hosts.toml", "server = 'https://three'"),
        ]);
        assert_eq!(shown(&lookup("h:5000", &options)), ["https://one/v2"]);
        assert_eq!(shown(&lookup("h", &options)), ["https://three/v2"]);
        assert_eq!(find_folder("..", &options.dirs), None);
        assert_eq!(find_folder("../_default", &options.dirs), None);
    }

    #[test]
    fn certificate_files_count_without_hosts_toml_and_beside_a_broken_one() {
        let files = [("a/x.crt", ""), ("a/c.cert", ""), ("a/c.key", ""), ("a/lonely.cert", "")];
        let (root, options) = folder(&files);
        let tls = |hosts: Vec<Host>| hosts[0].tls.clone();
        let dir = root.path().join("a");
        let want = Tls {
            ca: vec![dir.join("x.crt")],
            client: vec![(dir.join("c.cert"), Some(dir.join("c.key")))],
            skip_verify: None,
        };
        assert_eq!(tls(lookup("a", &options)), want);
        std::fs::write(dir.join("hosts.toml"), "server = [broken").unwrap();
        assert_eq!(tls(lookup("a", &options)), want);
        std::fs::write(dir.join("hosts.toml"), "server = 'https://b'").unwrap();
        assert_eq!(tls(lookup("a", &options)), Tls::default());
    }
}
