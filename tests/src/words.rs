//! Command lines as text.

/// Splits a line at spaces; quotes, single or double, keep them.
///
/// # Panics
/// When a quote is not closed.
pub fn words(line: &str) -> Vec<String> {
    let (mut found, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for letter in line.chars() {
        match (quote, letter) {
            (None, ' ' | '\n') => found.extend(word.take()),
            (None, '\'' | '"') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (Some(open), close) if open == close => quote = None,
            _ => word.get_or_insert_default().push(letter),
        }
    }
    assert!(quote.is_none(), "a quote is open in {line:?}");
    found.extend(word);
    found
}

#[test]
fn quotes_keep_spaces() {
    assert_eq!(words("run  a 'b \"c\"' \"\" --x=\"y z\""), ["run", "a", "b \"c\"", "", "--x=y z"]);
}
