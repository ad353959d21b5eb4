//! Real registries that do not let everybody in, and what is between us and them: TLS, passwords, tokens, proxies.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use corten_tests::registry::AUTHORITY;
use corten_tests::token_server::REFRESH_TOKEN;
use corten_tests::{Finished, Guard, ImageBuilder, Node, Peers, Registry, TokenServer, command};

const IMAGE: &str = "example.com/lab/box:1";

/// A node that has an image, not unpacked.
fn node() -> Node {
    let node = Node::start();
    import(&node);
    node
}

fn import(node: &Node) {
    let archive = node.join("image.tar");
    ImageBuilder::busybox().build().save(&archive, IMAGE).unwrap();
    node.ctr(["images", "import", "--no-unpack", archive.to_str().unwrap()]).ok();
}

fn with(node: &Node, program: &Path, args: &[&str], environment: &[(&str, &str)]) -> Finished {
    let mut command = node.foreign_ctr_command(program, args);
    // Whoever runs this may have secrets of his own.
    command.env("DOCKER_CONFIG", node.join("no-docker"));
    std::fs::create_dir_all(node.join("tmp")).unwrap();
    command.env("TMPDIR", node.join("tmp"));
    command.envs(environment.iter().copied());
    command::run(command)
}

fn ours() -> PathBuf {
    corten_tests::peers::programs().join("ctr")
}

/// Pushes and pulls with flags, by our ctr and by Debian's.
fn comes_and_goes(node: &Node, registry: &Registry, flags: &[&str]) {
    for (name, program) in [("ours", ours()), ("theirs", Peers::find().containerd_2_1().join("ctr"))] {
        let there = format!("{}/lab/{name}:1", registry.host());
        let words = |verb: &'static str| ["images", verb].into_iter().chain(flags.iter().copied());
        with(node, &program, &words("push").chain([there.as_str(), IMAGE]).collect::<Vec<_>>(), &[]).ok();
        with(node, &program, &words("pull").chain([there.as_str()]).collect::<Vec<_>>(), &[]).ok();
        assert_eq!(node.ctr(["run", "--rm", &there, name, "echo", "back"]).ok(), "back\n");
    }
}

/// A folder of certs.d that speaks of one registry.
fn hosts_dir(node: &Node, registry: &Registry, text: &str) -> String {
    let folder = node.join("certs.d").join(registry.host());
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("ca.pem"), AUTHORITY).unwrap();
    std::fs::write(folder.join("hosts.toml"), format!("server = 'https://{}'\n{text}", registry.host()))
        .unwrap();
    node.join("certs.d").display().to_string()
}

#[test]
fn a_registry_with_tls_is_believed_by_its_authority_alone() {
    let node = node();
    let registry = Registry::guarded(Guard { tls: true, ..Guard::default() });
    comes_and_goes(&node, &registry, &["--hosts-dir", &hosts_dir(&node, &registry, "ca = 'ca.pem'\n")]);
    let there = format!("{}/lab/ours:1", registry.host());
    let strange = hosts_dir(&node, &registry, "");
    let pull = |flags: &[&str]| {
        let words = ["images", "pull"].into_iter().chain(flags.iter().copied()).chain([there.as_str()]);
        with(&node, &ours(), &words.collect::<Vec<_>>(), &[])
    };
    pull(&["--hosts-dir", &strange]).fails_with("x509: certificate signed by unknown authority");
    hosts_dir(&node, &registry, "skip_verify = true\n");
    pull(&["--hosts-dir", &strange]).ok();
    let authority = node.join("certs.d").join(registry.host()).join("ca.pem");
    pull(&["--tlscacert", authority.to_str().unwrap()]).ok();
    pull(&["--skip-verify"]).ok();
    pull(&["--skip-verify", "--hosts-dir", &strange])
        .fails_with("--hosts-dir says how each host is spoken to");
    let left: Vec<_> = std::fs::read_dir(node.join("tmp")).unwrap().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
    node.finish();
}

#[test]
fn a_registry_with_passwords_is_given_them() {
    let node = node();
    let registry = Registry::guarded(Guard { basic: true, ..Guard::default() });
    comes_and_goes(&node, &registry, &["--plain-http", "--user", "u:p"]);
    let there = format!("{}/lab/ours:1", registry.host());
    let pull = |flags: &[&str], environment: &[(&str, &str)]| {
        let words = ["images", "pull", "--plain-http"].into_iter().chain(flags.iter().copied());
        with(&node, &ours(), &words.chain([there.as_str()]).collect::<Vec<_>>(), environment)
    };
    pull(&[], &[]).fails_with("no basic auth credentials");
    let refused = pull(&["--user", "u:wrong-password"], &[]);
    assert!(!format!("{}{}", refused.stdout, refused.stderr).contains("wrong-password"), "{refused:?}");
    refused.fails_with("pull access denied, repository does not exist or may require authorization");

    // What docker login has left: in the file, and by a helper.
    let folder = node.join("docker");
    std::fs::create_dir(&folder).unwrap();
    let config =
        |text: serde_json::Value| std::fs::write(folder.join("config.json"), text.to_string()).unwrap();
    let environment = [("DOCKER_CONFIG", folder.to_str().unwrap())];
    config(serde_json::json!({"auths": {registry.host(): {"auth": "dTpw"}}}));
    pull(&[], &environment).ok();
    config(serde_json::json!({"credHelpers": {registry.host(): "tests"}}));
    let helper = folder.join("docker-credential-tests");
    let script = "#!/bin/sh\nread host; [ \"$1\" = get ] || exit 1\n\
                  echo \"{\\\"ServerURL\\\":\\\"$host\\\",\\\"Username\\\":\\\"u\\\",\\\"Secret\\\":\\\"p\\\"}\"\n";
    std::fs::write(&helper, script).unwrap();
    std::fs::set_permissions(&helper, PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    pull(&[], &[environment[0], ("PATH", &path)]).ok();
    config(serde_json::json!({"credsStore": "tests"}));
    pull(&[], &[environment[0], ("PATH", &path)]).ok();
    std::fs::write(&helper, "#!/bin/sh\necho 'credentials not found in native keychain'; exit 1\n").unwrap();
    pull(&[], &[environment[0], ("PATH", &path)]).fails(1);
    node.finish();
}

#[test]
fn a_registry_with_tokens_is_asked_for_what_is_needed_and_no_more() {
    let node = node();
    let server = TokenServer::start("u", "p");
    let registry = Registry::guarded(Guard { tls: true, token: Some(&server), ..Guard::default() });
    let dir = hosts_dir(&node, &registry, "ca = 'ca.pem'\n");
    comes_and_goes(&node, &registry, &["--hosts-dir", &dir, "--user", "u:p"]);
    assert!(server.asked().iter().any(|form| form.contains("repository%3Alab%2Fours%3Apull%2Cpush")));
    let there = format!("{}/lab/ours:1", registry.host());
    let run = |verb: &'static str, flags: &[&str], names: &[&str]| {
        let words = ["images", verb, "--hosts-dir", &dir];
        with(&node, &ours(), &words.iter().chain(flags).chain(names).copied().collect::<Vec<_>>(), &[])
    };
    let before = server.asked().len();
    run("pull", &[], &[&there]).ok();
    let asked = server.asked();
    // One token serves the whole pull.
    assert_eq!(asked.get(before..).unwrap(), ["GET scope=repository%3Alab%2Fours%3Apull&service=tests"]);
    run("pull", &["--refresh", REFRESH_TOKEN], &[&there]).ok();
    assert!(server.asked().last().unwrap().contains("grant_type=refresh_token"));
    run("pull", &["--user", "u:wrong"], &[&there])
        .fails_with("failed to authorize: failed to fetch oauth token");
    // Anybody may read, and nobody else may write.
    let other = format!("{}/lab/other:1", registry.host());
    run("push", &[], &[&other, IMAGE]).fails_with("insufficient_scope");
    run("push", &["--user", "u:p"], &[&other, &there]).ok();
    let mounting = server.asked().into_iter().filter(|form| form.contains("lab%2Fother"));
    assert!(mounting.into_iter().any(|form| form.contains("repository%3Alab%2F")));
    node.finish();
}

/// A proxy that leads everywhere to one registry.
struct Proxy {
    port: u16,
    log: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    fn start(registry: &Registry) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let log: Arc<Mutex<Vec<String>>> = Arc::default();
        let (lines, host) = (Arc::clone(&log), registry.host());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (lines, host) = (Arc::clone(&lines), host.clone());
                std::thread::spawn(move || pass(stream, &lines, &host));
            }
        });
        Self { port, log }
    }
}

fn pass(stream: TcpStream, log: &Mutex<Vec<String>>, host: &str) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut first, mut rest) = (String::new(), String::new());
    reader.read_line(&mut first)?;
    while !rest.ends_with("\r\n\r\n") && rest != "\r\n" {
        if reader.read_line(&mut rest)? == 0 {
            return Ok(());
        }
    }
    let authorized =
        rest.to_ascii_lowercase().contains("proxy-authorization: basic dTpw".to_lowercase().as_str());
    log.lock().unwrap().push(format!("{} {authorized}", first.trim()));
    let mut server = TcpStream::connect(host)?;
    let mut client = stream;
    if first.starts_with("CONNECT ") {
        client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    } else {
        // To the host itself goes the path alone.
        let mut words = first.splitn(3, ' ');
        let (method, url) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let path = url.splitn(4, '/').nth(3).unwrap_or_default();
        write!(server, "{method} /{path} HTTP/1.1\r\n{rest}")?;
    }
    let (mut to, mut from) = (server.try_clone()?, client.try_clone()?);
    let upwards = std::thread::spawn(move || {
        let mut buffered = reader.buffer().to_vec();
        let _ = to.write_all(&buffered);
        buffered.clear();
        let _ = copy(&mut from, &mut to);
    });
    copy(&mut server, &mut client)?;
    let _ = upwards.join();
    Ok(())
}

fn copy(from: &mut TcpStream, to: &mut TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return to.shutdown(Shutdown::Write);
        }
        to.write_all(buffer.get(..count).unwrap_or_default())?;
    }
}

#[test]
fn registries_are_reached_through_the_proxies_of_the_environment() {
    for tls in [false, true] {
        let registry = Registry::guarded(Guard { tls, ..Guard::default() });
        let proxy = Proxy::start(&registry);
        let address = format!("http://u:p@127.0.0.1:{}", proxy.port);
        let node = Node::builder()
            .env("HTTP_PROXY", &address)
            .env("HTTPS_PROXY", &address)
            .env("NO_PROXY", "direct.test")
            .start();
        import(&node);
        // This machine itself is never behind a proxy.
        let here = format!("{}/lab/box:1", registry.host());
        let flag = if tls { "--skip-verify" } else { "--plain-http" };
        with(&node, &ours(), &["images", "push", flag, &here, IMAGE], &[]).ok();
        assert!(proxy.log.lock().unwrap().is_empty());
        let name = if tls { "registry.test" } else { "registry.test:5000" };
        with(&node, &ours(), &["images", "pull", flag, &format!("{name}/lab/box:1")], &[]).ok();
        let log = proxy.log.lock().unwrap().clone();
        let want =
            if tls { "CONNECT registry.test:443 HTTP/1.1 true" } else { "http://registry.test:5000/v2/" };
        assert!(
            !log.is_empty() && log.iter().all(|line| line.contains(want) && line.ends_with("true")),
            "{log:?}"
        );
        // There is no such host; what counts is who was asked.
        with(&node, &ours(), &["images", "pull", flag, "direct.test/lab/box:1"], &[]).fails(1);
        assert_eq!(proxy.log.lock().unwrap().len(), log.len());
        node.finish();
    }
}

#[test]
fn what_is_said_to_a_registry_is_shown_without_secrets() {
    let node = node();
    let registry = Registry::guarded(Guard { basic: true, ..Guard::default() });
    let there = format!("{}/lab/box:1", registry.host());
    with(&node, &ours(), &["images", "push", "--plain-http", "--user", "u:p", &there, IMAGE], &[]).ok();
    for program in [ours(), Peers::find().containerd_2_1().join("ctr")] {
        let words = ["images", "pull", "--plain-http", "--http-dump", "--user", "u:p", &there];
        let shown = with(&node, &program, &words, &[]);
        let text = format!("{}{}", shown.stdout, shown.stderr);
        shown.ok();
        assert!(text.contains(&format!("HEAD http://{}/v2/lab/box/manifests/1", registry.host())), "{text}");
        assert!(text.contains("authorization: <redacted>") && !text.contains("dTpw"), "{text}");
    }
    node.finish();
}
