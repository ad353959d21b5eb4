//! Credentials of the Docker command line: `config.json` and the helpers that it names.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use corten_types::{Error, Result, ResultExt};
use serde::Deserialize;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::{Credential, CredentialRequest, Credentials};

/// The key under which secrets for docker.io are kept.
const DOCKER_IO_KEY: &str = "https://index.docker.io/v1/";

/// Reads `config.json` anew for each question.
#[derive(Clone, Debug)]
pub struct DockerConfig {
    file: PathBuf,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct File {
    auths: HashMap<String, Auth>,
    #[serde(rename = "credHelpers")]
    helpers: HashMap<String, String>,
    #[serde(rename = "credsStore")]
    store: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Auth {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

#[derive(Deserialize)]
struct HelperAnswer {
    #[serde(rename = "Username", default)]
    username: String,
    #[serde(rename = "Secret", default)]
    secret: String,
}

impl DockerConfig {
    /// Credentials of a file.
    pub fn new(file: impl Into<PathBuf>) -> Self {
        Self { file: file.into() }
    }

    /// The file of the current user: `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`.
    #[must_use]
    pub fn of_user() -> Option<Self> {
        let folder = match std::env::var_os("DOCKER_CONFIG") {
            Some(folder) if !folder.is_empty() => PathBuf::from(folder),
            _ => Path::new(&std::env::var_os("HOME")?).join(".docker"),
        };
        Some(Self::new(folder.join("config.json")))
    }

    /// Whether there is such a file.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.file.exists()
    }

    fn read(&self) -> Result<File> {
        match std::fs::read(&self.file) {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|error| Error::invalid_argument(format!("{}: {error}", self.file.display()))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(File::default()),
            Err(error) => Err(Error::from(error).context(self.file.display())),
        }
    }
}

#[async_trait::async_trait]
impl Credentials for DockerConfig {
    async fn get(&self, request: CredentialRequest) -> Result<Option<Credential>> {
        let file = self.read()?;
        let key = match request.host.as_str() {
            "registry-1.docker.io" | "docker.io" | "index.docker.io" => DOCKER_IO_KEY,
            host => host,
        };
        let helper = file.helpers.get(key).map(String::as_str).unwrap_or(&file.store);
        if !helper.is_empty()
            && let Some(credential) = ask_helper(helper, key).await?
        {
            return Ok(Some(credential));
        }
        let entry = file.auths.iter().find(|(name, _)| matches(name, key)).map(|(_, auth)| auth);
        entry.map_or(Ok(None), Auth::credential)
    }
}

impl Auth {
    fn credential(&self) -> Result<Option<Credential>> {
        if !self.identitytoken.is_empty() {
            return Ok(Some(Credential::Refresh(self.identitytoken.clone())));
        }
        if !self.registrytoken.is_empty() {
            return Ok(Some(Credential::Header(format!("Bearer {}", self.registrytoken))));
        }
        let (username, secret) = if self.auth.is_empty() {
            (self.username.clone(), self.password.clone())
        } else {
            let invalid = || Error::invalid_argument("invalid auth configuration in config.json");
            let text = STANDARD.decode(&self.auth).map_err(|_| invalid())?;
            let text = String::from_utf8(text).map_err(|_| invalid())?;
            let (username, secret) = text.split_once(':').ok_or_else(invalid)?;
            (username.to_owned(), secret.trim_end_matches('\0').to_owned())
        };
        Ok((!username.is_empty()).then_some(Credential::Basic { username, secret }))
    }
}

/// Keys may be written with a scheme and a path.
fn matches(name: &str, key: &str) -> bool {
    let host = |text: &str| {
        let text = text.trim_start_matches("https://").trim_start_matches("http://");
        text.split('/').next().unwrap_or_default().to_owned()
    };
    name == key || (key != DOCKER_IO_KEY && host(name) == key)
}

async fn ask_helper(helper: &str, key: &str) -> Result<Option<Credential>> {
    if helper.contains('/') {
        return Err(Error::invalid_argument(format!("invalid credential helper {helper:?}")));
    }
    let program = format!("docker-credential-{helper}");
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context(&program)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper may answer without reading.
        let _ = stdin.write_all(key.as_bytes()).await;
    }
    let output = child.wait_with_output().await.context(&program)?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stdout);
        if text.contains("credentials not found") {
            return Ok(None);
        }
        return Err(Error::unknown(format!("{program}: {}", text.trim())));
    }
    let answer: HelperAnswer = serde_json::from_slice(&output.stdout)
        .map_err(|error| Error::unknown(format!("{program}: {error}")))?;
    Ok(Some(match answer.username.as_str() {
        "" | "<token>" => Credential::Refresh(answer.secret),
        _ => Credential::Basic { username: answer.username, secret: answer.secret },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(config: &str, host: &str) -> Result<Option<Credential>> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        std::fs::write(&file, config).unwrap();
        let request =
            CredentialRequest { host: host.to_owned(), reference: String::new(), challenges: Vec::new() };
        DockerConfig::new(file).get(request).await
    }

    fn basic(username: &str, secret: &str) -> Option<Credential> {
        Some(Credential::Basic { username: username.to_owned(), secret: secret.to_owned() })
    }

    #[tokio::test]
    async fn entries_are_found_by_host() {
        let config = format!(
            r#"{{"auths": {{"https://index.docker.io/v1/": {{"auth": "{}"}},
                "https://reg.example/v1/": {{"username": "v", "password": "w"}},
                "plain.example:5000": {{"identitytoken": "refresh"}}}}}}"#,
            STANDARD.encode("u:p:q")
        );
        assert_eq!(ask(&config, "registry-1.docker.io").await.unwrap(), basic("u", "p:q"));
        assert_eq!(ask(&config, "reg.example").await.unwrap(), basic("v", "w"));
        let refresh = Some(Credential::Refresh("refresh".to_owned()));
        assert_eq!(ask(&config, "plain.example:5000").await.unwrap(), refresh);
        assert_eq!(ask(&config, "other.example").await.unwrap(), None);
        assert_eq!(ask(&config, "index.docker.io.evil.example").await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_missing_file_is_no_error_and_a_broken_one_is() {
        let request =
            CredentialRequest { host: "a".to_owned(), reference: String::new(), challenges: Vec::new() };
        assert_eq!(DockerConfig::new("/nonexistent/config.json").get(request).await.unwrap(), None);
        assert!(ask("{", "a").await.is_err());
        assert!(ask(r#"{"auths": {"a": {"auth": "!"}}}"#, "a").await.is_err());
        assert!(ask(r#"{"credsStore": "../x"}"#, "a").await.is_err());
    }

    #[test]
    fn secrets_are_never_shown() {
        assert_eq!(format!("{:?}", basic("u", "hunter2")), "Some(user u)");
    }
}
