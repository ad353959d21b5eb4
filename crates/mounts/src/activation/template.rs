//! Templates: `{{ mount 0 }}` stands for where the first mount of the list is.

use corten_metadata::ActiveMount;
use corten_types::{Error, Mount, Result};

/// The mount with all templates in its fields filled in.
pub(crate) fn format(mount: &Mount, active: &[ActiveMount]) -> Result<Mount> {
    let options = mount.options.iter().map(|option| fill(option, active)).collect::<Result<_>>()?;
    Ok(Mount {
        kind: mount.kind.clone(),
        source: fill(&mount.source, active)?,
        target: fill(&mount.target, active)?,
        options,
    })
}

/// A dash beside the braces takes the white space on its side away.
fn fill(text: &str, active: &[ActiveMount]) -> Result<String> {
    let (mut filled, mut rest) = (String::new(), text);
    while let Some((before, inner)) = rest.split_once("{{") {
        let unclosed = || Error::invalid_argument(format!("template {text:?}: unclosed action"));
        let (inner, after) = inner.split_once("}}").ok_or_else(unclosed)?;
        let trimmed = inner.strip_prefix("- ");
        filled.push_str(if trimmed.is_some() { before.trim_end() } else { before });
        let inner = trimmed.unwrap_or(inner);
        let trimmed = inner.strip_suffix(" -");
        rest = if trimmed.is_some() { after.trim_start() } else { after };
        let value = value(trimmed.unwrap_or(inner), active);
        filled.push_str(&value.map_err(|error| error.context(format!("template {text:?}")))?);
    }
    filled.push_str(rest);
    Ok(filled)
}

fn value(action: &str, active: &[ActiveMount]) -> Result<String> {
    let at = |index: &str| {
        let number: usize =
            index.parse().map_err(|_| Error::invalid_argument(format!("{index:?} is not an index")))?;
        let missing = || Error::invalid_argument(format!("index {number} of {} active mounts", active.len()));
        active.get(number).map(|mount| (number, mount)).ok_or_else(missing)
    };
    match action.split_whitespace().collect::<Vec<_>>().as_slice() {
        ["source", index] => Ok(at(index)?.1.mount.source.clone()),
        ["target", index] => Ok(at(index)?.1.mount.target.clone()),
        ["mount", index] => Ok(at(index)?.1.mount_point.clone()),
        ["overlay", first, last] => {
            let ((first, _), (last, _)) = (at(first)?, at(last)?);
            let (low, high) = (first.min(last), first.max(last));
            let chosen = active.get(low..=high).unwrap_or_default();
            let mut points: Vec<&str> = chosen.iter().map(|mount| mount.mount_point.as_str()).collect();
            if first > last {
                points.reverse();
            }
            Ok(points.join(":"))
        }
        _ => Err(Error::invalid_argument(format!("action {:?} is not known", action.trim()))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn active(count: usize) -> Vec<ActiveMount> {
        let one = |n: usize| ActiveMount {
            mount: Mount { source: format!("/source/{n}"), target: format!("target{n}"), ..Mount::default() },
            mounted_at: None,
            mount_point: format!("/mount/{n}"),
        };
        (0..count).map(one).collect()
    }

    #[test]
    fn templates_are_filled_in() {
        for (text, wanted) in [
            ("", ""),
            ("plain }}", "plain }}"),
            ("{{ mount 0 }}/up", "/mount/0/up"),
            ("{{source 1}}:{{ target 2 }}", "/source/1:target2"),
            ("lowerdir={{ overlay 0 2 }}", "lowerdir=/mount/0:/mount/1:/mount/2"),
            ("lowerdir={{ overlay 2 1 }}", "lowerdir=/mount/2:/mount/1"),
            ("{{ overlay 1 1 }}", "/mount/1"),
            ("a  {{- mount 0 -}}  b", "a/mount/0b"),
        ] {
            assert_eq!(fill(text, &active(3)).unwrap(), wanted, "{text}");
        }
        for text in ["{{ mount 3 }}", "{{ mount -1 }}", "{{ mount }}", "{{ exec 0 }}", "{{ mount 0", "{{}}"] {
            let error = fill(text, &active(3)).unwrap_err();
            assert_eq!(error.class(), corten_types::ErrorClass::InvalidArgument, "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_too_odd(text in "([{}a-z0-9 -]|mount|overlay){0,40}", count in 0usize..3) {
            let _ = fill(&text, &active(count));
        }
    }
}
