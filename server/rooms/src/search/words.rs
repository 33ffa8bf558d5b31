//! Words: what texts are found by. The same for what is written and what is searched for, on every database.

/// Characters of a word that count.
const WORD_CHARS_MAX: usize = 64;
/// Phrases of a search that count.
const PHRASES_MAX: usize = 16;

/// The words of a text, in their order: runs of letters and digits, in small letters.
///
/// Scripts that put no spaces between their words give a word for each character; who searches for several of these
/// searches for them side by side.
pub(super) fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut chars = 0;
    for char in text.chars().flat_map(char::to_lowercase) {
        let is_alone = stands_alone(char);
        if is_alone || !char.is_alphanumeric() {
            if !word.is_empty() {
                words.push(std::mem::take(&mut word));
                chars = 0;
            }
            if is_alone && char.is_alphanumeric() {
                words.push(char.to_string());
            }
        } else if chars < WORD_CHARS_MAX {
            word.push(char);
            chars += 1;
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// What is searched for: what stands between quotation marks, and every other run of characters without a space, each as
/// words that follow each other.
pub(super) fn phrases(term: &str) -> Vec<Vec<String>> {
    let mut phrases = Vec::new();
    for (place, part) in term.split('"').enumerate() {
        if place % 2 == 1 {
            phrases.push(words(part));
        } else {
            phrases.extend(part.split_whitespace().map(words));
        }
    }
    phrases.retain(|phrase| !phrase.is_empty());
    phrases.truncate(PHRASES_MAX);
    phrases
}

/// What a client should highlight of what is searched for.
pub(super) fn highlights(phrases: &[Vec<String>]) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for phrase in phrases {
        let mut run = String::new();
        for word in phrase {
            if word.chars().all(stands_alone) {
                run.push_str(word);
                continue;
            }
            found.extend(Some(std::mem::take(&mut run)).filter(|run| !run.is_empty()));
            found.push(word.clone());
        }
        found.extend(Some(run).filter(|run| !run.is_empty()));
    }
    let mut seen = std::collections::HashSet::new();
    found.retain(|word| seen.insert(word.clone()));
    found
}

/// Whether a character belongs to a script without spaces: Thai to Khmer, the Japanese syllables, Chinese.
fn stands_alone(char: char) -> bool {
    matches!(u32::from(char), 0x0E00..=0x0EFF | 0x1000..=0x109F | 0x1780..=0x17FF | 0x3040..=0x30FF | 0x31F0..=0x31FF
        | 0x3400..=0x9FFF | 0xF900..=0xFAFF | 0x20000..=0x3FFFF)
}

#[cfg(test)]
mod tests {
    use super::{highlights, phrases, words};

    /// Words have no signs and no capitals; long ones are cut; characters of scripts without spaces stand alone.
    #[test]
    fn texts_have_words() {
        assert_eq!(words("Hello, WORLD-wide web_2!"), ["hello", "world", "wide", "web", "2"]);
        assert_eq!(words("Ärger'Ω' and 東京tower"), ["ärger", "ω", "and", "東", "京", "tower"]);
        assert_eq!(words(&"x".repeat(1000)), ["x".repeat(64)]);
        assert!(words(" \u{0}'\"\\:*() ").is_empty());
        for word in words("a'b\"c\\d:e*f g\u{0}h\u{2bc}i") {
            assert!(word.chars().all(char::is_alphanumeric), "{word}");
        }
    }

    /// A search is for all of its words, and for those in quotation marks side by side.
    #[test]
    fn searches_have_phrases() {
        assert_eq!(
            phrases("frogs \"in the marsh\" well-known"),
            [vec!["frogs"], vec!["in", "the", "marsh"], vec!["well", "known"]]
        );
        assert_eq!(phrases("東京"), [["東", "京"]]);
        assert!(phrases("\"\" - ").is_empty());
        assert_eq!(phrases(&"a ".repeat(100)).len(), 16);
        assert_eq!(highlights(&phrases("frogs 東京 frogs well-known")), ["frogs", "東京", "well", "known"]);
    }
}
