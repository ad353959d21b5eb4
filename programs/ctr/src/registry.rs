//! How a registry is spoken to: the flags, and what the daemon is told of them.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use corten_api::transfer_types::{self as objects, Data, WindowUpdate};
use corten_registry::{
    Credential, CredentialRequest, Credentials, DockerConfig, Resolver, ResolverOptions, Scheme, Trace,
};
use corten_types::{Any, Error, Result, ResultExt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::client::Daemon;
use crate::commands::images::{open, unique};
use crate::output::tell;

/// Bytes of the log that the daemon may be ahead.
const WINDOW: i32 = 1 << 20;
/// How long the rest of a log is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// How a registry is spoken to.
#[derive(Debug, Args)]
pub struct Registry {
    /// Accept any certificate.
    #[arg(short = 'k', long)]
    skip_verify: bool,
    /// Speak HTTP without TLS.
    #[arg(long)]
    plain_http: bool,
    /// name[:password] for the registry; without it, what docker login has left.
    #[arg(short, long)]
    user: Option<String>,
    /// A refresh token for the registry.
    #[arg(long)]
    refresh: Option<String>,
    /// Folder with a folder of settings for each registry.
    #[arg(long)]
    hosts_dir: Option<PathBuf>,
    /// Certificates of authorities to trust.
    #[arg(long)]
    tlscacert: Option<PathBuf>,
    /// Our certificate.
    #[arg(long)]
    tlscert: Option<PathBuf>,
    /// The key of our certificate.
    #[arg(long)]
    tlskey: Option<PathBuf>,
    /// Show requests and answers on standard error, without secrets.
    #[arg(long)]
    http_dump: bool,
    /// As --http-dump.
    #[arg(long)]
    http_trace: bool,
}

/// What the daemon is told, and what serves it meanwhile.
pub struct Access {
    pub resolver: objects::RegistryResolver,
    log: Option<JoinHandle<()>>,
    _settings: Option<Settings>,
}

/// Access to registries of this program's own.
pub struct Local {
    pub resolver: Resolver,
    _settings: Option<Settings>,
}

impl Access {
    /// Waits for the rest of the log.
    pub async fn finish(self) {
        if let Some(log) = self.log {
            let _ = tokio::time::timeout(PATIENCE, log).await;
        }
    }
}

impl Registry {
    /// Readies what a transfer needs to speak to registries; it lives as long as the transfer.
    pub async fn access(&self, daemon: &Daemon) -> Result<Access> {
        let settings = self.settings()?;
        let host_dir = match (&settings, &self.hosts_dir) {
            (Some(settings), _) => settings.0.display().to_string(),
            (None, Some(dir)) => dir.display().to_string(),
            (None, None) => String::new(),
        };
        let (mut log, mut logs_stream) = (None, String::new());
        if self.http_dump || self.http_trace {
            logs_stream = unique("log");
            let (sender, stream) = open(daemon, &logs_stream).await?;
            log = Some(tokio::spawn(show(sender, stream)));
        }
        let debug = match (self.http_dump, self.http_trace) {
            (false, false) => objects::HttpDebug::Disabled,
            (true, false) => objects::HttpDebug::Debug,
            (false, true) => objects::HttpDebug::Trace,
            (true, true) => objects::HttpDebug::Both,
        };
        let resolver = objects::RegistryResolver {
            auth_stream: self.answer(daemon).await?,
            host_dir,
            default_scheme: if self.plain_http { "http".into() } else { String::new() },
            http_debug: debug.into(),
            logs_stream,
            ..Default::default()
        };
        Ok(Access { resolver, log, _settings: settings })
    }

    /// Access without the daemon.
    pub fn local(&self) -> Result<Local> {
        let settings = self.settings()?;
        let dir = settings.as_ref().map(|settings| settings.0.clone()).or_else(|| self.hosts_dir.clone());
        let trace: Option<Trace> = (self.http_dump || self.http_trace)
            .then(|| Arc::new(|lines: &str| tell(format_args!("{lines}"))) as Trace);
        let resolver = Resolver::new(ResolverOptions {
            hosts_dirs: dir.into_iter().collect(),
            default_scheme: self.plain_http.then_some(Scheme::Http),
            credentials: self.source()?.map(|source| Arc::new(source) as Arc<dyn Credentials>),
            trace,
            ..ResolverOptions::default()
        });
        Ok(Local { resolver, _settings: settings })
    }

    /// Where secrets come from, if there are any.
    fn source(&self) -> Result<Option<Source>> {
        Ok(match (&self.user, &self.refresh) {
            (Some(user), _) => Some(Source::Given(of_user(user)?)),
            (None, Some(token)) => Some(Source::Given(Credential::Refresh(token.clone()))),
            (None, None) => DockerConfig::of_user().filter(DockerConfig::exists).map(Source::Docker),
        })
    }

    /// A stream that answers the daemon's questions for secrets; empty where there are none.
    async fn answer(&self, daemon: &Daemon) -> Result<String> {
        let Some(source) = self.source()? else { return Ok(String::new()) };
        let id = unique("auth");
        let (sender, mut stream) = open(daemon, &id).await?;
        tokio::spawn(async move {
            while let Ok(Some(question)) = stream.message().await {
                let answer = source.answer(&question).await;
                if sender.send(corten_api::pack(&answer)).await.is_err() {
                    return;
                }
            }
        });
        Ok(id)
    }

    /// The flags that the protocol knows no field for, as a folder of settings for all hosts.
    fn settings(&self) -> Result<Option<Settings>> {
        if !self.skip_verify && [&self.tlscacert, &self.tlscert, &self.tlskey].iter().all(|one| one.is_none())
        {
            return Ok(None);
        }
        if self.hosts_dir.is_some() {
            let text = "--hosts-dir says how each host is spoken to: write skip_verify, ca and client there, \
                        instead of --skip-verify, --tlscacert, --tlscert and --tlskey";
            return Err(Error::invalid_argument(text));
        }
        let quoted = |path: &PathBuf| -> Result<String> {
            let path = path.canonicalize().with_context(|| format!("open {}", path.display()))?;
            Ok(format!("{:?}", path.display().to_string()))
        };
        self.check_files()?;
        let mut text = String::new();
        if self.skip_verify {
            text.push_str("skip_verify = true\n");
        }
        if let Some(ca) = &self.tlscacert {
            let _ = writeln!(text, "ca = {}", quoted(ca)?);
        }
        match (&self.tlscert, &self.tlskey) {
            (Some(certificate), Some(key)) => {
                let _ = writeln!(text, "client = [[{}, {}]]", quoted(certificate)?, quoted(key)?);
            }
            (Some(certificate), None) => {
                let _ = writeln!(text, "client = {}", quoted(certificate)?);
            }
            (None, Some(_)) => return Err(Error::invalid_argument("--tlskey is of use only with --tlscert")),
            (None, None) => {}
        }
        Settings::write(&text).map(Some)
    }

    /// Files that cannot be read are told as the original tells them.
    fn check_files(&self) -> Result<()> {
        let open = |path: &PathBuf, context: &dyn Fn() -> String| {
            let opened = std::fs::File::open(path).with_context(|| format!("open {}", path.display()));
            opened.map(drop).with_context(context)
        };
        if let Some(ca) = &self.tlscacert {
            open(ca, &|| format!("failed to read {:?}", ca.display().to_string()))?;
        }
        if let (Some(certificate), Some(key)) = (&self.tlscert, &self.tlskey) {
            let (cert, key_path) = (certificate.display().to_string(), key.display().to_string());
            let context =
                || format!("failed to load TLS client credentials (cert={cert:?}, key={key_path:?})");
            open(certificate, &context)?;
            open(key, &context)?;
        }
        Ok(())
    }
}

/// `name[:password]`; the password is asked for where there is none.
fn of_user(text: &str) -> Result<Credential> {
    let (username, secret) = match text.split_once(':') {
        Some((username, secret)) => (username, secret.to_owned()),
        None => (text, asked()?),
    };
    Ok(Credential::Basic { username: username.to_owned(), secret })
}

/// A password from the terminal, which does not show it; none where there is no terminal.
fn asked() -> Result<String> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    let input = std::io::stdin();
    let Ok(before) = tcgetattr(&input) else { return Ok(String::new()) };
    tell(format_args!("Password: "));
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&input, OptionalActions::Now, &silent).map_err(std::io::Error::from)?;
    let mut line = String::new();
    let read = input.read_line(&mut line);
    tcsetattr(&input, OptionalActions::Now, &before).map_err(std::io::Error::from)?;
    tell(format_args!("\n"));
    read?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// Where secrets come from.
enum Source {
    Given(Credential),
    Docker(DockerConfig),
}

#[async_trait::async_trait]
impl Credentials for Source {
    async fn get(&self, request: CredentialRequest) -> Result<Option<Credential>> {
        match self {
            Self::Given(credential) => Ok(Some(credential.clone())),
            Self::Docker(config) => config.get(request).await,
        }
    }
}

impl Source {
    /// The answer to a question of the daemon's.
    async fn answer(&self, question: &Any) -> objects::AuthResponse {
        let question: objects::AuthRequest = corten_api::unpack(question).unwrap_or_default();
        let request = CredentialRequest {
            host: question.host,
            reference: question.reference,
            challenges: question.wwwauthenticate,
        };
        let credential = self.get(request).await.unwrap_or_else(|error| {
            crate::log::error("docker's credentials cannot be used", &error);
            None
        });
        let none = objects::AuthResponse::default();
        match credential {
            None => none,
            Some(Credential::Basic { username, secret }) => {
                let auth_type = objects::AuthType::Credentials.into();
                objects::AuthResponse { auth_type, username, secret, ..none }
            }
            Some(Credential::Refresh(secret)) => {
                objects::AuthResponse { auth_type: objects::AuthType::Refresh.into(), secret, ..none }
            }
            Some(Credential::Header(secret)) => {
                objects::AuthResponse { auth_type: objects::AuthType::Header.into(), secret, ..none }
            }
        }
    }
}

/// A folder of certs.d for the time of one command.
struct Settings(PathBuf);

impl Settings {
    fn write(text: &str) -> Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let dir = std::env::temp_dir().join(unique("ctr-hosts"));
        // Made by us and for us alone: nobody else may say whom we trust.
        std::fs::DirBuilder::new().mode(0o700).create(&dir).with_context(|| dir.display().to_string())?;
        let made = Self(dir);
        let folder = made.0.join("_default");
        std::fs::create_dir(&folder)?;
        std::fs::write(folder.join("hosts.toml"), text)?;
        Ok(made)
    }
}

impl Drop for Settings {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// Shows a log as it comes.
async fn show(sender: mpsc::Sender<Any>, mut stream: tonic::Streaming<Any>) {
    let mut window = 0;
    loop {
        if window < WINDOW && sender.send(corten_api::pack(&WindowUpdate { update: WINDOW })).await.is_ok() {
            window += WINDOW;
        }
        let Ok(Some(message)) = stream.message().await else { return };
        let Ok(Data { data }) = corten_api::unpack(&message) else { return };
        window -= i32::try_from(data.len()).unwrap_or(i32::MAX);
        tell(format_args!("{}", String::from_utf8_lossy(&data)));
    }
}
