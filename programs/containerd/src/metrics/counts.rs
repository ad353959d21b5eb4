//! gRPC calls, counted by method (`grpc_server_*`).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tonic::Code;

use super::BOUNDS;
use super::text::{Kind, Page};
use crate::calls::{self, SERVICES};

/// Codes in the order of their numbers, as they are spelled in labels.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// Counters of all methods.
pub struct Counts {
    methods: HashMap<String, Arc<Method>>,
    /// Whether durations are shown.
    histogram: bool,
}

/// Counters of a method.
pub struct Method {
    service: &'static str,
    name: &'static str,
    kind: &'static str,
    served: AtomicBool,
    started: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    handled: [AtomicU64; CODES.len()],
    buckets: [AtomicU64; BOUNDS.len()],
    nanos: AtomicU64,
}

impl Counts {
    /// Counters; with or without durations.
    pub fn new(histogram: bool) -> Self {
        let mut methods = HashMap::new();
        for (service, names) in SERVICES {
            for name in names {
                methods.insert(format!("/{service}/{name}"), Arc::new(Method::new(service, name)));
            }
        }
        Self { methods, histogram }
    }

    /// A service is there: its methods are shown from now on.
    pub fn serve(&self, service: &str) {
        let of_service = self.methods.values().filter(|method| method.service == service);
        of_service.for_each(|method| method.served.store(true, Ordering::Relaxed));
    }

    /// The method of a path.
    pub fn method(&self, path: &str) -> Option<Arc<Method>> {
        self.methods.get(path).cloned()
    }

    /// Shows all counters, those that are 0 too.
    pub fn show(&self, page: &mut Page) {
        let served = |method: &&Arc<Method>| method.served.load(Ordering::Relaxed);
        let mut methods: Vec<&Arc<Method>> = self.methods.values().filter(served).collect();
        methods.sort_by_key(|method| (method.service, method.name));
        type Read = fn(&Method) -> u64;
        let plain: [(&str, &str, Read); 3] = [
            ("started_total", "Total number of RPCs started on the server.", |m| load(&m.started)),
            ("msg_received_total", "Total number of RPC stream messages received on the server.", |m| {
                load(&m.received)
            }),
            ("msg_sent_total", "Total number of gRPC stream messages sent by the server.", |m| load(&m.sent)),
        ];
        for (name, help, read) in plain {
            let family = page.family(&format!("grpc_server_{name}"), help, Kind::Counter);
            for method in &methods {
                family.value(&method.labels(), read(method) as f64);
            }
        }
        let help = "Total number of RPCs completed on the server, regardless of success or failure.";
        let family = page.family("grpc_server_handled_total", help, Kind::Counter);
        for method in &methods {
            let [name, service, kind] = method.labels();
            for (code, count) in CODES.iter().zip(&method.handled) {
                family.value(&[("grpc_code", code), name, service, kind], load(count) as f64);
            }
        }
        if self.histogram {
            show_durations(page, &methods);
        }
    }
}

fn show_durations(page: &mut Page, methods: &[&Arc<Method>]) {
    let help = "Histogram of response latency (seconds) of gRPC that had been application-level handled by the server.";
    let family = page.family("grpc_server_handling_seconds", help, Kind::Histogram);
    for method in methods {
        let count: u64 = method.handled.iter().map(load).sum();
        let within: Vec<u64> = method.buckets.iter().map(load).collect();
        super::histogram(family, &method.labels(), &within, Duration::from_nanos(load(&method.nanos)), count);
    }
}

impl Method {
    fn new(service: &'static str, name: &'static str) -> Self {
        let zeros = || AtomicU64::new(0);
        Self {
            service,
            name,
            kind: calls::kind(service, name).name(),
            served: AtomicBool::new(false),
            started: zeros(),
            received: zeros(),
            sent: zeros(),
            handled: std::array::from_fn(|_| zeros()),
            buckets: std::array::from_fn(|_| zeros()),
            nanos: zeros(),
        }
    }

    fn labels(&self) -> [(&str, &str); 3] {
        [("grpc_method", self.name), ("grpc_service", self.service), ("grpc_type", self.kind)]
    }

    /// A call began.
    pub fn started(&self) {
        self.started.fetch_add(1, Ordering::Relaxed);
    }

    /// Messages came.
    pub fn received(&self, count: u64) {
        self.received.fetch_add(count, Ordering::Relaxed);
    }

    /// Messages were sent.
    pub fn sent(&self, count: u64) {
        self.sent.fetch_add(count, Ordering::Relaxed);
    }

    /// A call ended.
    pub fn handled(&self, code: Code, took: Duration) {
        if let Some(count) = self.handled.get(code as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let within = BOUNDS.iter().position(|bound| took.as_secs_f64() <= *bound);
        if let Some(bucket) = within.and_then(|index| self.buckets.get(index)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.nanos.fetch_add(took.as_nanos().try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_of_a_service_is_there_from_the_start() {
        let counts = Counts::new(true);
        counts.serve("containerd.services.version.v1.Version");
        let path = "/containerd.services.version.v1.Version/Version";
        let method = counts.method(path).unwrap();
        method.started();
        method.received(1);
        method.handled(Code::NotFound, Duration::from_millis(30));
        let mut page = Page::default();
        counts.show(&mut page);
        let text = page.finish();
        let labels = "grpc_method=\"Version\",grpc_service=\"containerd.services.version.v1.Version\",grpc_type=\"unary\"";
        for line in [
            format!("grpc_server_started_total{{{labels}}} 1\n"),
            format!("grpc_server_msg_sent_total{{{labels}}} 0\n"),
            format!("grpc_server_handled_total{{grpc_code=\"NotFound\",{labels}}} 1\n"),
            format!("grpc_server_handled_total{{grpc_code=\"OK\",{labels}}} 0\n"),
            format!("grpc_server_handling_seconds_bucket{{{labels},le=\"0.025\"}} 0\n"),
            format!("grpc_server_handling_seconds_bucket{{{labels},le=\"0.05\"}} 1\n"),
            format!("grpc_server_handling_seconds_bucket{{{labels},le=\"+Inf\"}} 1\n"),
            format!("grpc_server_handling_seconds_sum{{{labels}}} 0.03\n"),
        ] {
            assert!(text.contains(&line), "{line}\n{text}");
        }
        assert!(!text.contains("Tasks"));
        assert!(counts.method("/containerd.services.tasks.v1.Tasks/None").is_none());
    }
}
