//! ttrpc: frames of a client that may say anything, and of a server. The first byte chooses.
#![no_main]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use corten_ttrpc::{CallOptions, Client, Reply, Request, Server, Service};
use libfuzzer_sys::fuzz_target;

/// Gives back what it was given.
struct Echo;

impl Service for Echo {
    fn call(&self, request: Request) -> Reply<'_> {
        Box::pin(async move {
            drop((request.metadata("key"), request.namespace(), request.unknown()));
            Ok(request.payload.to_vec())
        })
    }
}

/// The bytes from one side, and nothing more; what the other side said is read by a thread.
fn talk(input: &[u8], end: impl AsyncFnOnce(tokio::net::UnixStream)) {
    let (mut ours, theirs) = UnixStream::pair().expect("sockets");
    theirs.set_nonblocking(true).expect("sockets");
    let input = input.to_vec();
    let thread = std::thread::spawn(move || {
        // The other side may have closed it by then.
        let _ = ours.write_all(&input).and_then(|()| ours.shutdown(std::net::Shutdown::Write));
        let _ = ours.read_to_end(&mut Vec::new());
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let stream = tokio::net::UnixStream::from_std(theirs).expect("sockets");
        tokio::time::timeout(Duration::from_secs(10), end(stream)).await.expect("it ends with the stream");
    });
    drop(runtime);
    thread.join().expect("the peer");
}

fuzz_target!(|input: &[u8]| {
    match input.split_first() {
        Some((0..128, frames)) => talk(frames, async |stream| {
            Server::new(Arc::new(Echo)).serve_connection(stream).await;
        }),
        Some((_, frames)) => talk(frames, async |stream| {
            let client = Client::new(stream);
            let options = CallOptions { timeout: Some(Duration::from_secs(5)), ..CallOptions::default() };
            drop(client.call::<(), ()>("service", "Method", &(), options).await);
        }),
        None => {}
    }
});
