//! Reads HTML as strictly as XML: the pages of `secateur report` are both.

/// A tag: its name, its attributes, and whether it opens, closes, or does both.
struct Tag {
    name: String,
    attributes: Vec<(String, String)>,
    closes: bool,
    empty: bool,
    /// Where the tag begins, and where what follows it does.
    start: usize,
    end: usize,
}

/// The tags of a page; panics at the first fault.
fn tags(html: &str) -> Vec<Tag> {
    let body = html.strip_prefix("<!DOCTYPE html>\n").expect("a page begins with its type");
    let offset = html.len() - body.len();
    let mut tags: Vec<Tag> = Vec::new();
    let mut at = 0;
    while let Some(start) = body[at..].find('<').map(|found| at + found) {
        // A style sheet is text to the end of its element.
        check_text(&body[at..start], tags.last().is_some_and(|tag: &Tag| tag.name == "style" && !tag.closes));
        let mut rest = &body[start + 1..];
        let closes = rest.starts_with('/');
        rest = rest.strip_prefix('/').unwrap_or(rest);
        let length = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap();
        let name = rest[..length].to_string();
        assert!(
            !name.is_empty(),
            "no tag after <: {:?}",
            &body[start..].chars().take(40).collect::<String>()
        );
        rest = &rest[length..];
        let mut attributes = Vec::new();
        let empty = loop {
            let trimmed = rest.trim_start();
            if let Some(left) = trimmed.strip_prefix("/>") {
                rest = left;
                break true;
            }
            if let Some(left) = trimmed.strip_prefix('>') {
                rest = left;
                break false;
            }
            assert!(
                trimmed.len() < rest.len(),
                "<{name}: no space before {:?}",
                trimmed.chars().take(20).collect::<String>()
            );
            let (key, value) = trimmed.split_once("=\"").unwrap_or_else(|| panic!("<{name}: no value"));
            assert!(key.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'), "<{name} {key:?}");
            let (value, left) = value.split_once('"').unwrap();
            check_text(value, false);
            assert!(!value.contains('<'), "{name} {key}");
            assert!(attributes.iter().all(|(known, _)| known != key), "<{name}: {key} twice");
            attributes.push((key.to_string(), value.to_string()));
            rest = left;
        };
        at = body.len() - rest.len();
        tags.push(Tag { name, attributes, closes, empty, start: offset + start, end: offset + at });
    }
    assert_eq!(body[at..].trim(), "");
    tags
}

fn check_text(text: &str, raw: bool) {
    for (at, _) in text.match_indices('&').filter(|_| !raw) {
        let known =
            ["&amp;", "&lt;", "&gt;", "&quot;", "&#39;"].iter().any(|entity| text[at..].starts_with(entity));
        assert!(known, "a bare & in {text:?}");
    }
    assert!(raw || !text.contains('>'), "a bare > in {text:?}");
}

/// Panics unless every element is closed in its turn.
pub fn check_well_formed(html: &str) {
    let mut open: Vec<String> = Vec::new();
    for tag in tags(html) {
        if tag.closes {
            assert_eq!(open.pop().as_ref(), Some(&tag.name), "</{}> closes another", tag.name);
        } else if !tag.empty {
            open.push(tag.name);
        }
    }
    assert!(open.is_empty(), "never closed: {open:?}");
}

/// Tag, name and value of every attribute.
pub fn attributes(html: &str) -> Vec<(String, String, String)> {
    let of = |tag: Tag| tag.attributes.into_iter().map(move |(name, value)| (tag.name.clone(), name, value));
    tags(html).into_iter().flat_map(of).collect()
}

/// What stands directly inside each element of this name, up to the first tag within; entities as they are.
pub fn texts(html: &str, name: &str) -> Vec<String> {
    let tags = tags(html);
    let pairs = tags.windows(2).filter(|pair| pair[0].name == name && !pair[0].closes && !pair[0].empty);
    pairs.map(|pair| html[pair[0].end..pair[1].start].to_string()).collect()
}
