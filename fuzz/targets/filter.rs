//! Filters: one entry for each line, the object's fields in the last one.
#![no_main]

use std::borrow::Cow;
use std::collections::BTreeMap;

use corten_types::Filter;
use corten_types::filter::{Fields, label, text};
use libfuzzer_sys::fuzz_target;

struct Object<'a>(&'a str, BTreeMap<String, String>);

impl Fields for Object<'_> {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["id", ..] => text(self.0),
            ["labels", rest @ ..] => label(rest, &self.1),
            _ => None,
        }
    }
}

fuzz_target!(|input: &str| {
    let entries: Vec<&str> = input.split('\u{0}').collect();
    let object = Object(input, BTreeMap::from([("a.b".to_owned(), input.to_owned())]));
    match Filter::parse(&entries) {
        Ok(filter) => drop(filter.matches(&object)),
        Err(error) => assert!(error.to_string().starts_with("filters: parse error: ["), "{error}"),
    }
});
