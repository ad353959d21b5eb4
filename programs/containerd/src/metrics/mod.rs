//! The metrics endpoint (spec 00 §8): `/v1/metrics`, in Prometheus' text format. Families have the names that
//! the original gives them; those of Go's runtime mean nothing here.

mod container;
mod counts;
mod process;
mod text;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use corten_metadata::{Collector, Containers, Namespaces, Runs};
use corten_runtime::Tasks;
use http::StatusCode;

use crate::VERSION;
use crate::site::{Answer, Question, Site, answer, not_found};

pub use counts::{Counts, Method};
use text::{Family, Kind, Page, number};

/// Bounds of the buckets of durations, seconds.
const BOUNDS: [f64; 11] = Runs::BOUNDS;

/// What is shown.
pub struct Metrics {
    pub counts: Arc<Counts>,
    pub collector: Option<Collector>,
    /// Containers' figures; none with `no_prometheus`.
    pub running: Option<Running>,
    pub scrapes: AtomicU64,
}

/// Where the figures of containers come from.
pub struct Running {
    pub namespaces: Namespaces,
    pub containers: Containers,
    pub tasks: Tasks,
}

#[async_trait]
impl Site for Metrics {
    async fn answer(&self, question: Question) -> Answer {
        if question.path != "/v1/metrics" {
            return not_found();
        }
        let page = self.page().await;
        self.scrapes.fetch_add(1, Ordering::Relaxed);
        answer(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8; escaping=underscores", page)
    }
}

impl Metrics {
    async fn page(&self) -> String {
        let mut page = Page::default();
        page.family("containerd_build_info_total", "containerd build information", Kind::Counter)
            .value(&[("revision", ""), ("version", VERSION)], 1.0);
        self.counts.show(&mut page);
        self.show_collections(&mut page);
        process::show(&mut page);
        if let Some(running) = &self.running {
            container::show(&mut page, running).await;
        }
        let help = "Current number of scrapes being served.";
        page.family("promhttp_metric_handler_requests_in_flight", help, Kind::Gauge).value(&[], 1.0);
        let help = "Total number of scrapes by HTTP status code.";
        let family = page.family("promhttp_metric_handler_requests_total", help, Kind::Counter);
        let scrapes = self.scrapes.load(Ordering::Relaxed) as f64;
        family
            .value(&[("code", "200")], scrapes)
            .value(&[("code", "500")], 0.0)
            .value(&[("code", "503")], 0.0);
        page.finish()
    }

    fn show_collections(&self, page: &mut Page) {
        let Some(runs) = self.collector.as_ref().map(Collector::runs) else { return };
        let help = "counter of gc scheduler collections";
        let family = page.family("containerd_gc_collections_total", help, Kind::Counter);
        for (status, count) in [("fail", runs.failed), ("success", runs.succeeded)] {
            if count > 0 {
                family.value(&[("status", status)], count as f64);
            }
        }
        let help = "duration of gc scheduler collections";
        let family = page.family("containerd_gc_gc_seconds", help, Kind::Histogram);
        histogram(family, &[], &runs.within, runs.spent, runs.succeeded);
    }
}

/// The lines of a histogram, given how many values fell into each bucket.
fn histogram(family: &mut Family, labels: &[(&str, &str)], buckets: &[u64], sum: Duration, count: u64) {
    let mut below = 0;
    for (bound, bucket) in BOUNDS.iter().zip(buckets) {
        below += bucket;
        let bound = number(*bound);
        let labels: Vec<_> = labels.iter().copied().chain([("le", bound.as_str())]).collect();
        family.line("_bucket", &labels, below as f64);
    }
    let every: Vec<_> = labels.iter().copied().chain([("le", "+Inf")]).collect();
    family.line("_bucket", &every, count as f64);
    family.line("_sum", labels, sum.as_secs_f64());
    family.line("_count", labels, count as f64);
}
