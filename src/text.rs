//! Text of others (names and messages from files, paths, arguments), made fit to be shown.

use std::fmt::Write;

/// Characters of a word that are shown in a message; of a longer one the beginning and the end.
const WORD: usize = 200;
/// Characters of a message that are shown.
const MESSAGE: usize = 4000;
/// Characters of a word that are shown in a line of results: as many as a path can have.
const RESULT_WORD: usize = 4096;

/// Text for a terminal: characters that move the cursor, change colours or turn the direction of the text are written as
/// escapes. A line break or tab is one of them.
pub fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for character in text.chars() {
        if is_unsafe(character) {
            let _ = write!(plain, "{}", character.escape_unicode());
        } else {
            plain.push(character);
        }
    }
    plain
}

/// A plain line of results; of an overlong word without the middle.
pub fn line(text: &str) -> String {
    words(text, RESULT_WORD)
}

/// A plain message; of an overlong word, and of an overlong message, without the middle.
pub fn message(text: &str) -> String {
    cut(&words(text, WORD), MESSAGE)
}

fn words(text: &str, most: usize) -> String {
    text.split(' ').map(|word| cut(&plain(word), most)).collect::<Vec<_>>().join(" ")
}

/// The beginning and the end of a text of more than `most` characters.
fn cut(text: &str, most: usize) -> String {
    let count = text.chars().count();
    if count <= most {
        return text.into();
    }
    let (head, tail) = (most * 2 / 3, most / 3);
    let head: String = text.chars().take(head).collect();
    let tail: String = text.chars().skip(count - tail).collect();
    format!("{head}…{tail}")
}

/// Control characters (Unicode's Cc), separators of lines, and marks without a width, those that turn the direction among them.
fn is_unsafe(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// The words that this process was called with; what is not UTF-8 in them is replaced, so they are for readers alone.
pub fn command_line() -> Vec<String> {
    std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_act_on_is_escaped() {
        assert_eq!(plain("a\u{1b}[31mred\u{7}"), "a\\u{1b}[31mred\\u{7}");
        assert_eq!(
            plain("\u{202e}txt.exe\u{2066}\u{9b}\r\n"),
            "\\u{202e}txt.exe\\u{2066}\\u{9b}\\u{d}\\u{a}"
        );
        assert_eq!(plain("8/255, ε ≤ 3 %: naïve 日本"), "8/255, ε ≤ 3 %: naïve 日本");
    }

    #[test]
    fn long_words_and_messages_lose_their_middle() {
        let word = format!("begin{}end", "x".repeat(1 << 20));
        let text = message(&format!("tensor {word}: missing"));
        assert!(text.starts_with("tensor beginx") && text.ends_with("xend: missing"), "{text}");
        assert!(text.chars().count() < 250);
        let text = message(&"word ".repeat(1 << 20));
        assert!(text.starts_with("word word") && text.chars().count() <= MESSAGE + 1);
        assert_eq!(message("a plain message"), "a plain message");
    }
}
