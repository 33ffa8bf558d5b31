//! What an uploader says of a file, made fit to be said again.

/// The longest name of a file, in bytes: what file systems take.
const FILE_NAME_BYTES_MAX: usize = 255;
/// The longest content type, in bytes.
const CONTENT_TYPE_BYTES_MAX: usize = 255;

/// A name without control characters, cut where it is too long.
pub(crate) fn file_name(name: &str) -> Option<String> {
    let mut kept = String::new();
    for character in name.chars().filter(|character| !character.is_control()) {
        if kept.len() + character.len_utf8() > FILE_NAME_BYTES_MAX {
            break;
        }
        kept.push(character);
    }
    (!kept.is_empty()).then_some(kept)
}

/// A content type that can stand in a header: `type/subtype`, perhaps with parameters.
pub(crate) fn content_type(text: &str) -> Option<String> {
    let is_header = text.len() <= CONTENT_TYPE_BYTES_MAX && text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    (is_header && text.contains('/')).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::{content_type, file_name};

    /// What could split a header or confuse a file system is left out.
    #[test]
    fn names_are_made_fit() {
        assert_eq!(file_name("a\0b\r\nc.txt").as_deref(), Some("abc.txt"));
        assert_eq!(file_name("\n"), None);
        assert_eq!(file_name(&"é".repeat(200)).unwrap().len(), 254);
        assert_eq!(content_type("text/plain; charset=utf-8").as_deref(), Some("text/plain; charset=utf-8"));
        for bad in ["", "text", "text/plain\r\nX: y", "text/plän"] {
            assert_eq!(content_type(bad), None, "{bad:?}");
        }
    }
}
