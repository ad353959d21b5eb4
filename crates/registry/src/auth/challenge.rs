//! `WWW-Authenticate` header lines.

use std::collections::BTreeMap;

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;

/// How a host wants us to identify ourselves. The order is the order of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Method {
    Bearer,
    Basic,
}

/// One demand: its method and parameters, names in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Challenge {
    pub method: Method,
    pub parameters: BTreeMap<String, String>,
}

impl Challenge {
    pub fn parameter(&self, name: &str) -> &str {
        self.parameters.get(name).map_or("", String::as_str)
    }
}

/// The lines as sent.
pub(super) fn lines(headers: &HeaderMap) -> Vec<String> {
    let lines = headers.get_all(WWW_AUTHENTICATE).iter();
    lines.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect()
}

/// What the lines demand, of the methods that are known here; preferred ones first.
pub(super) fn parse(lines: &[String]) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = lines.iter().flat_map(|line| parse_line(line)).collect();
    challenges.sort_by_key(|challenge| challenge.method);
    challenges
}

/// One line: `scheme name=value, name="value", scheme …`.
fn parse_line(line: &str) -> Vec<Challenge> {
    let mut challenges = Vec::new();
    let mut current: Option<Challenge> = None;
    let mut rest = line.trim_start_matches(separator);
    while !rest.is_empty() {
        let end = rest.find(|c: char| !is_token(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            // Not a header that can be understood further.
            break;
        }
        let after_space = after.trim_start_matches([' ', '\t']);
        if let Some(value) = after_space.strip_prefix('=') {
            let (value, after) = parse_value(value.trim_start_matches([' ', '\t']));
            if let Some(challenge) = &mut current {
                challenge.parameters.insert(word.to_ascii_lowercase(), value);
            }
            rest = after;
        } else {
            challenges.extend(current.take());
            let method = match word.to_ascii_lowercase().as_str() {
                "bearer" => Some(Method::Bearer),
                "basic" => Some(Method::Basic),
                _ => None,
            };
            current = method.map(|method| Challenge { method, parameters: BTreeMap::new() });
            rest = after_space;
        }
        rest = rest.trim_start_matches(separator);
    }
    challenges.extend(current);
    challenges
}

fn parse_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(|c: char| separator(c)).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((index, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[index + 1..]),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

fn separator(c: char) -> bool {
    matches!(c, ' ' | '\t' | ',')
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(line: &str) -> Vec<(Method, Vec<(String, String)>)> {
        parse(&[line.to_owned()])
            .into_iter()
            .map(|challenge| (challenge.method, challenge.parameters.into_iter().collect()))
            .collect()
    }

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn challenges_are_read() {
        let line = r#"Bearer realm="https://a/t,x",service="s", scope="repository:a:pull,push" ,error=bad"#;
        let want = vec![
            pair("error", "bad"),
            pair("realm", "https://a/t,x"),
            pair("scope", "repository:a:pull,push"),
            pair("service", "s"),
        ];
        assert_eq!(one(line), [(Method::Bearer, want)]);
        assert_eq!(one("basic REALM=\"a\\\"b\""), [(Method::Basic, vec![pair("realm", "a\"b")])]);
    }

    #[test]
    fn bearer_is_preferred_over_basic_in_whatever_line() {
        let lines = ["Basic realm=x".to_owned(), "Digest realm=y, Bearer realm=\"z\"".to_owned()];
        let methods: Vec<_> = parse(&lines).iter().map(|challenge| challenge.method).collect();
        assert_eq!(methods, [Method::Bearer, Method::Basic]);
        assert_eq!(parse(&lines)[0].parameter("realm"), "z");
    }

    proptest! {
        #[test]
        fn any_line_is_survived(line in ".{0,80}") {
            parse(&[line]);
        }
    }
}
