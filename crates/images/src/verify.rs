//! Programs that decide whether an image may be pulled (spec 03 §11).

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use corten_types::{Descriptor, Error, Result, ResultExt};
use rustix::process::{Pid, Signal};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use crate::pull::Verifier;

const DESCRIPTOR_TYPE: &str = "application/vnd.oci.descriptor.v1+json";
/// What is kept of a reason.
const MAX_REASON: u64 = 32 << 10;

/// Runs the programs of a folder in the order of their names; the image has to pass all of them.
#[derive(Clone, Debug)]
pub struct VerifierDir {
    /// Name of the plugin, for messages.
    pub name: String,
    /// The folder; if it does not exist, every image passes.
    pub dir: PathBuf,
    /// How many programs are run at most; nothing for all.
    pub max_verifiers: Option<usize>,
    /// How long each may take.
    pub timeout: Duration,
}

/// What a program said.
enum Verdict {
    Pass,
    Refuse(String),
}

#[async_trait::async_trait]
impl Verifier for VerifierDir {
    async fn verify(&self, name: &str, target: &Descriptor) -> Result<()> {
        for program in self.programs()? {
            let verdict = tokio::time::timeout(self.timeout, run(&program, name, target)).await;
            let verdict = verdict.unwrap_or_else(|_| Err(Error::unknown("context deadline exceeded")));
            let verdict = verdict.map_err(|error| {
                let program = program.display();
                error.context(format!(
                    "blocking pull of {name} with digest {}: image verifier {} returned error: failed to call \
                     verifier {program:?}",
                    target.digest, self.name
                ))
            })?;
            if let Verdict::Refuse(reason) = verdict {
                return Err(Error::unknown(format!(
                    "image verifier {} blocked pull of {name} with digest {} for reason: {reason}",
                    self.name, target.digest
                )));
            }
        }
        Ok(())
    }
}

impl VerifierDir {
    fn programs(&self) -> Result<Vec<PathBuf>> {
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::from(error).context(self.dir.display())),
        };
        let mut programs = Vec::new();
        for entry in entries {
            let path = entry.context(self.dir.display())?.path();
            if !path.is_dir() {
                programs.push(path);
            }
        }
        programs.sort();
        programs.truncate(self.max_verifiers.unwrap_or(usize::MAX));
        Ok(programs)
    }
}

async fn run(program: &Path, name: &str, target: &Descriptor) -> Result<Verdict> {
    let mut child = Command::new(program)
        .args(["-name", name, "-digest", target.digest.as_str(), "-stdin-media-type", DESCRIPTOR_TYPE])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let group = Group(child.id().and_then(|id| Pid::from_raw(id.cast_signed())));
    let descriptor = serde_json::to_vec(target).map_err(|error| Error::internal(error.to_string()))?;
    let stdin = child.stdin.take();
    let write = async move {
        if let Some(mut stdin) = stdin {
            // A program may decide without reading.
            let _ = stdin.write_all(&descriptor).await;
        }
    };
    let ((), (out, err)) = tokio::join!(write, output(&mut child));
    let status = child.wait().await?;
    group.finished();
    if !err.is_empty() {
        tracing::debug!(program = %program.display(), stderr = %err, "image verifier");
    }
    if status.success() {
        return Ok(Verdict::Pass);
    }
    let file = program.file_name().unwrap_or_default().to_string_lossy();
    let code = status.code().unwrap_or(-1);
    Ok(Verdict::Refuse(format!("verifier {file} rejected image (exit code {code}): {}", out.trim_end())))
}

/// A program and what it started, killed unless it finished.
struct Group(Option<Pid>);

impl Group {
    fn finished(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            let _ = rustix::process::kill_process_group(leader, Signal::KILL);
        }
    }
}

/// Both outputs, of each no more than is kept; the rest is read and dropped, so that the program can end.
async fn output(child: &mut Child) -> (String, String) {
    async fn read(stream: Option<impl tokio::io::AsyncRead + Unpin>) -> String {
        let Some(mut stream) = stream else { return String::new() };
        let mut kept = Vec::new();
        let _ = (&mut stream).take(MAX_REASON).read_to_end(&mut kept).await;
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
        String::from_utf8_lossy(&kept).into_owned()
    }
    tokio::join!(read(child.stdout.take()), read(child.stderr.take()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use corten_types::{Digest, media_type};

    use super::*;

    async fn verify(programs: &[(&str, &str)]) -> Result<String> {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let bin = dir.path().join("bin");
        std::fs::create_dir(&bin).unwrap();
        for (name, script) in programs {
            let text = format!("#!/bin/sh\nlog={}\n{script}\n", log.display());
            std::fs::write(bin.join(name), text).unwrap();
            std::fs::set_permissions(bin.join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let verifier = VerifierDir {
            name: "bindir".to_owned(),
            dir: bin,
            max_verifiers: None,
            timeout: Duration::from_millis(500),
        };
        let target = Descriptor::new(media_type::OCI_MANIFEST, Digest::sha256(b"m"), 1);
        verifier.verify("reg.example/a:1", &target).await?;
        Ok(std::fs::read_to_string(log).unwrap_or_default())
    }

    #[tokio::test]
    async fn all_programs_are_asked_in_order_with_the_descriptor() {
        let log =
            verify(&[("b", "echo second >>$log; cat >>$log"), ("a", "echo \"$@\" >>$log")]).await.unwrap();
        let digest = Digest::sha256(b"m");
        assert!(
            log.starts_with(&format!(
                "-name reg.example/a:1 -digest {digest} -stdin-media-type {DESCRIPTOR_TYPE}\nsecond\n{{"
            )),
            "{log}"
        );
        assert_eq!(verify(&[]).await.unwrap(), "");
    }

    #[tokio::test]
    async fn a_refusal_gives_its_reason() {
        let error = verify(&[("a", "true"), ("no", "echo not signed; exit 3")]).await.unwrap_err();
        let digest = Digest::sha256(b"m");
        assert_eq!(
            error.to_string(),
            format!(
                "image verifier bindir blocked pull of reg.example/a:1 with digest {digest} for reason: \
                 verifier no rejected image (exit code 3): not signed"
            )
        );
    }

    #[tokio::test]
    async fn a_program_that_hangs_or_talks_without_end_blocks_the_pull() {
        let error = verify(&[("a", "sleep 60")]).await.unwrap_err().to_string();
        assert!(error.contains("deadline exceeded"), "{error}");
        let error = verify(&[("a", "head -c 1000000 /dev/zero | tr '\\0' x; exit 1")]).await.unwrap_err();
        assert!(error.message().len() < 40_000);
    }
}
