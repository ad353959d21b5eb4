//! Calls to all services of a daemon, one after the other on the same stores: each gets a status, and what was said
//! before must not break what is said later. A call is a byte that chooses the method, and messages: each is its length
//! in two bytes, whose highest bit says that another one follows, and its bytes.
#![no_main]

use std::cell::RefCell;

use containerd::fuzz::{Daemon, methods, takes_one, transfer};
use libfuzzer_sys::fuzz_target;

/// Inputs after which the stores are made anew, so that they stay small.
const INPUTS: usize = 2000;
/// Calls in one input.
const CALLS: usize = 8;

struct State {
    methods: Vec<String>,
    daemon: Option<Daemon>,
    inputs: usize,
}

thread_local! {
    static STATE: RefCell<State> = RefCell::new(State { methods: methods(), daemon: None, inputs: 0 });
}

impl State {
    fn daemon(&mut self) -> &Daemon {
        let folder = std::env::temp_dir().join("daemon");
        if self.inputs.is_multiple_of(INPUTS) {
            self.daemon = None;
            let _ = std::fs::remove_dir_all(&folder);
        }
        self.inputs += 1;
        self.daemon.get_or_insert_with(|| Daemon::start(&folder))
    }
}

/// The next message, and whether another one follows.
fn message<'a>(input: &mut &'a [u8]) -> Option<(&'a [u8], bool)> {
    let (length, rest) = input.split_at_checked(2)?;
    let length = u16::from_be_bytes([length[0], length[1]]);
    let (message, rest) = rest.split_at_checked(usize::from(length & 0x7fff).min(rest.len()))?;
    *input = rest;
    Some((message, length & 0x8000 != 0))
}

fuzz_target!(|input: &[u8]| {
    let mut input = input;
    STATE.with_borrow_mut(|state| {
        let methods = std::mem::take(&mut state.methods);
        let daemon = state.daemon();
        for _ in 0..CALLS {
            let Some((which, rest)) = input.split_first() else { break };
            input = rest;
            let mut messages = Vec::new();
            while let Some((one, more)) = message(&mut input) {
                messages.push(one);
                if !more {
                    break;
                }
            }
            match methods.get(usize::from(*which)) {
                Some(path) if takes_one(path) => drop(daemon.call(path, messages.get(..1).unwrap_or_default())),
                Some(path) => drop(daemon.call(path, &messages)),
                None => messages.iter().for_each(|message| transfer(message)),
            }
        }
        state.methods = methods;
    });
});
