//! Patterns of file names: `*`, `?`, `[a-z]`, `[^a-z]`, `\` before a character that stands for itself.

/// Whether a name, without slashes, has the form of a pattern. A malformed one matches nothing.
pub fn matches(pattern: &str, name: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let name: Vec<char> = name.chars().collect();
    // Where to go on when it does not fit: behind the last star, which takes one character more.
    let (mut at, mut seen, mut retry) = (0, 0, None);
    loop {
        if pattern.get(at) == Some(&'*') {
            retry = Some((at + 1, seen));
            at += 1;
            continue;
        }
        match (pattern.get(at), name.get(seen)) {
            (None, None) => return true,
            (Some(_), Some(character)) => {
                if let Some(width) = one(pattern.get(at..).unwrap_or_default(), *character) {
                    (at, seen) = (at + width, seen + 1);
                    continue;
                }
            }
            _ => {}
        }
        match retry {
            Some((after, taken)) if taken < name.len() => {
                (at, seen) = (after, taken + 1);
                retry = Some((after, taken + 1));
            }
            _ => return false,
        }
    }
}

/// The length of the pattern's first item, if a character fits it.
fn one(pattern: &[char], character: char) -> Option<usize> {
    match pattern {
        ['?', ..] => Some(1),
        ['\\', literal, ..] => (*literal == character).then_some(2),
        ['[', rest @ ..] => {
            let (negated, rest) = match rest {
                ['^' | '!', rest @ ..] => (true, rest),
                rest => (false, rest),
            };
            let (mut at, mut fits) = (0, false);
            loop {
                match rest.get(at..)? {
                    [']', ..] if at > 0 => break,
                    [low, '-', high, ..] if *high != ']' => {
                        fits |= (*low..=*high).contains(&character);
                        at += 3;
                    }
                    ['\\', literal, ..] => {
                        fits |= *literal == character;
                        at += 2;
                    }
                    [literal, ..] => {
                        fits |= *literal == character;
                        at += 1;
                    }
                    [] => return None,
                }
            }
            (fits != negated).then_some(at + 2 + usize::from(negated))
        }
        [literal, ..] => (*literal == character).then_some(1),
        [] => None,
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns_match_as_the_shell_has_it() {
        for (pattern, name) in [
            ("*.toml", "a.toml"),
            ("*", ""),
            ("a*b*c", "axxbyyc"),
            ("a*bc", "abbc"),
            ("?.toml", "x.toml"),
            ("[a-c]x", "bx"),
            ("[^a-c]x", "dx"),
            ("[]a]x", "]x"),
            ("\\*", "*"),
            ("a[\\]]", "a]"),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("*.toml", "a.tom"),
            ("?", ""),
            ("?", "ab"),
            ("[a-c]", "d"),
            ("[^a-c]", "a"),
            ("[x", "x"),
            ("", "x"),
        ] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }
}
