//! OpenTelemetry's environment variables, those that mean something to spans.

use std::time::Duration;

use corten_types::{Error, Result};
use http::{HeaderName, HeaderValue, Uri};

/// Where spans go and how.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The collector, with the path where the protocol has one.
    pub endpoint: Uri,
    pub protocol: Protocol,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// How long one request may take.
    pub timeout: Duration,
    pub sampler: Sampler,
    /// Attributes of the resource.
    pub resource: Vec<(String, String)>,
    /// Spans that wait at most.
    pub queue: usize,
    /// Spans in one request at most.
    pub batch: usize,
    /// How long spans wait for others.
    pub delay: Duration,
}

/// How a collector is spoken to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Protocol {
    Http,
    Grpc,
}

/// Which calls become spans.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sampler {
    Always,
    Never,
    /// This share of the traces.
    Ratio(f64),
    /// As the parent says; without one all, none, or a share.
    ParentOr(f64),
}

impl Sampler {
    /// Whether a call becomes a span.
    pub fn takes(self, parent: Option<bool>, trace: [u8; 16]) -> bool {
        let share = match (self, parent) {
            (Self::ParentOr(_), Some(sampled)) => return sampled,
            (Self::Always, _) => 1.0,
            (Self::Never, _) => 0.0,
            (Self::Ratio(share) | Self::ParentOr(share), _) => share,
        };
        // The last bytes of a trace's id are random, and the same for all of its spans.
        let [.., a, b, c, d, e, f, g, h] = trace;
        let place = u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 11;
        (place as f64) < share * (1_u64 << 53) as f64
    }
}

impl Settings {
    /// Reads the variables that `get` knows; nothing if they name no collector.
    ///
    /// # Errors
    /// NotImplemented for another protocol, InvalidArgument for an address that is none.
    pub fn from_environment(get: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let get = |name: &str| get(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        // What is said for traces goes before what is said for all signals.
        let otlp = |name: &str| {
            get(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}"))
                .or_else(|| get(&format!("OTEL_EXPORTER_OTLP_{name}")))
        };
        let Some(address) = otlp("ENDPOINT") else { return Ok(None) };
        if get("OTEL_SDK_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true")) {
            return Ok(None);
        }
        let protocol = match otlp("PROTOCOL").as_deref() {
            None | Some("http/protobuf") => Protocol::Http,
            Some("grpc") => Protocol::Grpc,
            Some(other) => {
                return Err(Error::not_implemented(format!("OpenTelemetry protocol {other:?} ")));
            }
        };
        // An address for traces is whole; that for all signals lacks the path.
        let whole = get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").is_some();
        let address = match protocol {
            Protocol::Http if !whole => format!("{}/v1/traces", address.trim_end_matches('/')),
            _ => address,
        };
        let number = |name: &str, usual: u64| get(name).and_then(|text| text.parse().ok()).unwrap_or(usual);
        let timeout = otlp("TIMEOUT").and_then(|text| text.parse().ok()).unwrap_or(10_000);
        let queue = number("OTEL_BSP_MAX_QUEUE_SIZE", 2048).clamp(1, 1 << 16);
        Ok(Some(Self {
            endpoint: endpoint(&address)?,
            protocol,
            headers: pairs(otlp("HEADERS").as_deref())
                .into_iter()
                .filter_map(|(key, value)| Some((key.parse().ok()?, value.parse().ok()?)))
                .collect(),
            timeout: Duration::from_millis(timeout),
            sampler: sampler(
                get("OTEL_TRACES_SAMPLER").as_deref(),
                get("OTEL_TRACES_SAMPLER_ARG").as_deref(),
            ),
            resource: resource(get("OTEL_RESOURCE_ATTRIBUTES").as_deref(), get("OTEL_SERVICE_NAME")),
            queue: queue as usize,
            batch: number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512).clamp(1, queue) as usize,
            delay: Duration::from_millis(number("OTEL_BSP_SCHEDULE_DELAY", 5000)),
        }))
    }
}

fn endpoint(address: &str) -> Result<Uri> {
    let invalid = || Error::invalid_argument(format!("invalid OTLP endpoint {address:?}"));
    let uri: Uri = address.parse().map_err(|_| invalid())?;
    match (uri.scheme_str(), uri.host()) {
        (Some("http" | "https"), Some(_)) => Ok(uri),
        _ => Err(invalid()),
    }
}

/// `key=value,…`, values percent-encoded.
fn pairs(text: Option<&str>) -> Vec<(String, String)> {
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=')?;
        Some((key.trim().to_owned(), decoded(value.trim())))
    };
    text.unwrap_or_default().split(',').filter_map(pair).collect()
}

fn decoded(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((first, behind)) = rest.split_first() {
        let code = behind.get(..2).and_then(|code| std::str::from_utf8(code).ok());
        let code = code.and_then(|code| u8::from_str_radix(code, 16).ok()).filter(|_| *first == b'%');
        bytes.push(code.unwrap_or(*first));
        rest = behind.get(if code.is_some() { 2 } else { 0 }..).unwrap_or_default();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn sampler(name: Option<&str>, argument: Option<&str>) -> Sampler {
    let share = argument.and_then(|text| text.parse().ok()).unwrap_or(1.0_f64).clamp(0.0, 1.0);
    match name {
        Some("always_on") => Sampler::Always,
        Some("always_off") => Sampler::Never,
        Some("traceidratio") => Sampler::Ratio(share),
        Some("parentbased_always_off") => Sampler::ParentOr(0.0),
        Some("parentbased_traceidratio") => Sampler::ParentOr(share),
        _ => Sampler::ParentOr(1.0),
    }
}

fn resource(attributes: Option<&str>, service: Option<String>) -> Vec<(String, String)> {
    let mut list = pairs(attributes);
    if let Some(service) = service {
        list.retain(|(key, _)| key != "service.name");
        list.push(("service.name".into(), service));
    } else if !list.iter().any(|(key, _)| key == "service.name") {
        list.push(("service.name".into(), "containerd".into()));
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Option<Settings>> {
        Settings::from_environment(|name| {
            pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_endpoint_for_all_signals_gets_the_path_of_traces() {
        assert!(read(&[]).unwrap().is_none());
        let all = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318/");
        let settings = read(&[all]).unwrap().unwrap();
        assert_eq!(settings.endpoint, "http://127.0.0.1:4318/v1/traces");
        assert_eq!(settings.resource, [("service.name".into(), "containerd".into())]);
        assert_eq!((settings.queue, settings.batch, settings.delay), (2048, 512, Duration::from_secs(5)));
        let traces = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:4318/x");
        assert_eq!(read(&[all, traces]).unwrap().unwrap().endpoint, "http://127.0.0.1:4318/x");
        let grpc = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
        let settings =
            read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317"), grpc]).unwrap().unwrap();
        assert_eq!((settings.endpoint.path(), settings.protocol), ("/", Protocol::Grpc));
        assert!(read(&[all, ("OTEL_SDK_DISABLED", "true")]).unwrap().is_none());
    }

    #[test]
    fn what_cannot_be_used_is_refused() {
        let endpoint = |text| read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", text)]);
        assert!(endpoint("nonsense").is_err());
        assert!(endpoint("ftp://x/").is_err());
        let json = ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json");
        let error = read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://x"), json]).unwrap_err();
        assert_eq!(error.to_string(), "OpenTelemetry protocol \"http/json\" : not implemented");
    }

    #[test]
    fn lists_are_read_and_samplers_take_their_share() {
        let settings = read(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://x"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=b%20c, d = e,bad"),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=other,host=here"),
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
        ]);
        let settings = settings.unwrap().unwrap();
        assert_eq!(settings.headers.len(), 2);
        assert_eq!(settings.headers[0].1, "b c");
        assert_eq!(settings.resource[0].1, "other");
        let takes = |sampler: Sampler, parent| {
            let trace = |n: u8| [0, 0, 0, 0, 0, 0, 0, 0, n, 0, 0, 0, 0, 0, 0, 0];
            (0..=255).filter(|n| sampler.takes(parent, trace(*n))).count()
        };
        assert_eq!(takes(settings.sampler, None), 64);
        assert_eq!(takes(settings.sampler, Some(true)), 256);
        assert_eq!(takes(settings.sampler, Some(false)), 0);
        assert_eq!(takes(Sampler::Always, Some(false)), 256);
        assert_eq!(takes(Sampler::Never, Some(true)), 0);
    }
}
