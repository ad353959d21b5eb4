//! Programs that turn layers of one type into another, for example by decrypting them (spec 03 §12).

use std::io::{self, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread::JoinHandle;

use corten_types::{Any, Error, Result, ResultExt};

/// As much of what a program says on standard error as is kept.
const SAID: u64 = 32 << 10;
const BUFFER: usize = 64 << 10;
/// Where a program finds the message for it.
const PAYLOAD: i32 = 3;
const MEDIA_TYPE: &str = "STREAM_PROCESSOR_MEDIATYPE";

/// A stream processor, as configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamProcessor {
    /// Its name, by which requests have messages for it.
    pub id: String,
    /// Media types that it takes.
    pub accepts: Vec<String>,
    /// Media type that it makes of them.
    pub returns: String,
    /// The program: a path, or a name to be searched for.
    pub path: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// `K=V`, beside the daemon's own environment.
    pub env: Vec<String>,
}

impl StreamProcessor {
    pub(crate) fn takes(&self, media_type: &str) -> bool {
        self.accepts.iter().any(|accepted| accepted == media_type)
    }

    /// Starts it on a stream of the given type. What comes out ends in an error if the program fails.
    pub(crate) fn start(
        &self,
        input: Box<dyn Read + Send>,
        media_type: &str,
        payload: Option<&Any>,
    ) -> Result<Box<dyn Read + Send>> {
        let mut command = Command::new(&self.path);
        command.args(&self.args).env(MEDIA_TYPE, media_type);
        command.envs(self.env.iter().filter_map(|pair| pair.split_once('=')));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let message = payload.map(|payload| self.hand_over(&mut command, payload)).transpose()?;
        let mut child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound if !self.path.contains('/') => {
                Error::unknown(format!("exec: {:?}: executable file not found in $PATH", self.path))
            }
            _ => Error::from(error).context(&self.path),
        })?;
        // The program's ends are closed here, so that it sees when there is no more.
        drop(command);
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let mut running = Running { child, stdout, feeder: None, errors: None };
        if let Some((pipe, message)) = message {
            thread(move || write_all(pipe, &message))?;
        }
        if let Some(stdin) = stdin {
            running.feeder = Some(thread(move || feed(input, stdin))?);
        }
        if let Some(stderr) = stderr {
            running.errors = Some(thread(move || Ok(said(stderr)))?);
        }
        Ok(Box::new(running))
    }

    /// Gives the program a pipe on which a message can be sent to it.
    fn hand_over(&self, command: &mut Command, payload: &Any) -> Result<(io::PipeWriter, Vec<u8>)> {
        let message = prost::Message::encode_to_vec(payload);
        let (reader, writer) = io::pipe().with_context(|| self.id.clone())?;
        corten_sys::hand_over(command, reader.into(), PAYLOAD);
        Ok((writer, message))
    }
}

fn thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<JoinHandle<io::Result<T>>> {
    std::thread::Builder::new().name("processor".to_owned()).spawn(work)
}

fn write_all(mut pipe: io::PipeWriter, message: &[u8]) -> io::Result<()> {
    pipe.write_all(message)
}

/// Passes the input on. That the program does not want all of it is its business.
fn feed(mut input: Box<dyn Read + Send>, mut stdin: ChildStdin) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = match input.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        match stdin.write_all(buffer.get(..count).unwrap_or_default()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            other => other?,
        }
    }
}

/// The beginning of what a program says; the rest is read and dropped.
fn said(mut stderr: impl Read) -> String {
    let mut text = Vec::new();
    // What it said until then is good enough.
    let _ = stderr.by_ref().take(SAID).read_to_end(&mut text);
    let _ = io::copy(&mut stderr, &mut io::sink());
    String::from_utf8_lossy(&text).trim_end().to_owned()
}

/// A program at work.
struct Running {
    child: Child,
    stdout: Option<ChildStdout>,
    feeder: Option<JoinHandle<io::Result<()>>>,
    errors: Option<JoinHandle<io::Result<String>>>,
}

impl Running {
    /// Whether all went well, now that nothing more comes.
    fn end(&mut self) -> io::Result<()> {
        self.stdout = None;
        let status = self.child.wait()?;
        let said = self.errors.take().and_then(|thread| thread.join().ok()).and_then(Result::ok);
        // If the input failed, the program cannot be blamed.
        match self.feeder.take().map(JoinHandle::join) {
            Some(Ok(fed)) => fed?,
            Some(Err(_)) => {
                return Err(io::Error::other("the thread that feeds a stream processor panicked"));
            }
            None => {}
        }
        match said {
            _ if status.success() => Ok(()),
            Some(said) if !said.is_empty() => Err(io::Error::other(said)),
            _ => Err(io::Error::other(format!("stream processor: {status}"))),
        }
    }
}

impl Read for Running {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(stdout) = &mut self.stdout else { return Ok(0) };
        let count = stdout.read(buffer)?;
        if count == 0 && !buffer.is_empty() {
            self.end()?;
        }
        Ok(count)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Given up, or ended already: then there is nothing to kill.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &str, payload: Option<&Any>) -> Result<Vec<u8>> {
        let processor = StreamProcessor {
            id: "test".into(),
            accepts: vec!["a".into()],
            returns: "b".into(),
            path: "sh".into(),
            args: vec!["-c".into(), script.into()],
            env: vec!["ADDED=yes".into()],
        };
        let mut output = Vec::new();
        processor.start(Box::new(&b"input"[..]), "a", payload)?.read_to_end(&mut output)?;
        Ok(output)
    }

    #[test]
    fn a_program_gets_stream_type_environment_and_message() {
        assert_eq!(run("tr a-z A-Z", None).unwrap(), b"INPUT");
        assert_eq!(run("echo $STREAM_PROCESSOR_MEDIATYPE $ADDED", None).unwrap(), b"a yes\n");
        let payload = Any { type_url: "t".into(), value: vec![7; 200_000] };
        let expected = prost::Message::encode_to_vec(&payload);
        assert_eq!(run("cat <&3", Some(&payload)).unwrap(), expected);
        assert_eq!(run("true", Some(&payload)).unwrap(), b"");
    }

    #[test]
    fn a_program_that_fails_says_why() {
        let failed = |script: &str| run(script, None).unwrap_err().message().to_owned();
        assert_eq!(failed("cat; echo the key is missing >&2; exit 3"), "the key is missing");
        assert_eq!(failed("exit 3"), "stream processor: exit status: 3");
        let processor = StreamProcessor { path: "no-such-decoder".into(), ..StreamProcessor::default() };
        let Err(error) = processor.start(Box::new(io::empty()), "a", None) else { panic!("it started") };
        assert_eq!(error.message(), "exec: \"no-such-decoder\": executable file not found in $PATH");
    }
}
