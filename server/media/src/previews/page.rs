//! Reading pages: their characters, and what they say of themselves. Only tokens are looked at, so that a page can be
//! as broken as it likes.

use encoding_rs::{Encoding, UTF_8};
use html5gum::{DefaultEmitter, StartTag, Token, Tokenizer};
use serde_json::{Map, Value};
use url::Url;

use super::Page;

/// The longest text that is passed on, in characters.
const TEXT_MAX: usize = 1000;
/// Properties that are passed on.
const PROPERTIES_MAX: usize = 32;
/// A charset stands in the first bytes of a page.
const CHARSET_WITHIN: usize = 1024;

/// What a page says of itself.
#[derive(Debug)]
pub(super) struct Described {
    base: Url,
    /// `og:…`, but its pictures.
    properties: Vec<(String, String)>,
    title: String,
    description: Option<String>,
    pub(super) picture: Option<Url>,
    pub(super) oembed: Option<Url>,
}

/// Reads the beginning of a page.
pub(super) fn describe(page: &Page, bytes_max: usize) -> Described {
    let body = &page.body[..page.body.len().min(bytes_max)];
    let (html, _, _) = encoding(page.content_type.as_deref().unwrap_or_default(), body).decode(body);
    let mut described = Described {
        base: page.url.clone(),
        properties: Vec::new(),
        title: String::new(),
        description: None,
        picture: None,
        oembed: None,
    };
    let mut emitter = DefaultEmitter::default();
    emitter.naively_switch_states(true);
    let mut is_title = false;
    for Ok(token) in Tokenizer::new_with_emitter(&*html, emitter) {
        match token {
            Token::StartTag(tag) => match &*tag.name.0 {
                b"title" => is_title = described.title.is_empty(),
                b"meta" => described.read_meta(&tag),
                b"link" => described.read_link(&tag),
                _ => {}
            },
            Token::EndTag(tag) if &*tag.name.0 == b"title" => is_title = false,
            Token::String(text) if is_title && described.title.len() < TEXT_MAX => {
                described.title.push_str(&String::from_utf8_lossy(&text.0));
            }
            _ => {}
        }
    }
    described
}

impl Described {
    fn read_meta(&mut self, tag: &StartTag<()>) {
        let name = attribute(tag, b"property").or_else(|| attribute(tag, b"name")).unwrap_or_default();
        let Some(content) = attribute(tag, b"content").and_then(|content| clean(&content)) else { return };
        match name.to_ascii_lowercase().as_str() {
            "og:image" | "og:image:url" | "og:image:secure_url" | "twitter:image" if self.picture.is_none() => {
                self.picture = self.base.join(&content).ok();
            }
            name if name.starts_with("og:image") => {}
            name if name.starts_with("og:") && name.len() <= 64 => {
                let is_new = self.properties.iter().all(|(known, _)| known != name);
                if is_new && self.properties.len() < PROPERTIES_MAX {
                    self.properties.push((name.to_owned(), content));
                }
            }
            "description" | "twitter:description" if self.description.is_none() => self.description = Some(content),
            _ => {}
        }
    }

    fn read_link(&mut self, tag: &StartTag<()>) {
        let is_oembed = attribute(tag, b"rel").is_some_and(|rel| rel.eq_ignore_ascii_case("alternate"))
            && attribute(tag, b"type").is_some_and(|kind| kind.eq_ignore_ascii_case("application/json+oembed"));
        if is_oembed && self.oembed.is_none() {
            self.oembed = attribute(tag, b"href").and_then(|href| self.base.join(href.trim()).ok());
        }
    }

    fn has(&self, name: &str) -> bool {
        self.properties.iter().any(|(known, _)| known == name)
    }

    pub(super) fn is_incomplete(&self) -> bool {
        !self.has("og:title") || self.picture.is_none()
    }

    /// <https://oembed.com/>, section 2.3.4.
    pub(super) fn add_oembed(&mut self, document: &Map<String, Value>, at: &Url) {
        let text = |name: &str| document.get(name).and_then(Value::as_str).and_then(clean);
        for (name, property) in [("title", "og:title"), ("provider_name", "og:site_name"), ("author_name", "og:author")]
        {
            if let Some(text) = text(name).filter(|_| !self.has(property)) {
                self.properties.push((property.to_owned(), text));
            }
        }
        if self.picture.is_none() {
            self.picture = text("thumbnail_url").and_then(|url| at.join(&url).ok());
        }
    }

    pub(super) fn add_to(mut self, preview: &mut Map<String, Value>) {
        if let Some(title) = clean(&self.title).filter(|_| !self.has("og:title")) {
            self.properties.push(("og:title".to_owned(), title));
        }
        if let Some(description) = self.description.take().filter(|_| !self.has("og:description")) {
            self.properties.push(("og:description".to_owned(), description));
        }
        preview.extend(self.properties.into_iter().map(|(name, text)| (name, text.into())));
    }
}

fn attribute(tag: &StartTag<()>, name: &[u8]) -> Option<String> {
    let value = tag.attributes.get(name)?;
    Some(String::from_utf8_lossy(&value.0).into_owned())
}

/// A text in one line, cut where it is too long; none if there is nothing in it.
fn clean(text: &str) -> Option<String> {
    let words = text.split(|character: char| character.is_whitespace() || character.is_control());
    let line = words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    let line: String = line.chars().take(TEXT_MAX).collect();
    (!line.is_empty()).then_some(line)
}

/// By its byte order mark, which the decoder sees itself, its header, and what it says in its first bytes.
fn encoding(content_type: &str, body: &[u8]) -> &'static Encoding {
    let start = &body[..body.len().min(CHARSET_WITHIN)];
    let labelled = charset(content_type.as_bytes()).or_else(|| charset(start));
    labelled.unwrap_or(UTF_8)
}

/// What stands behind `charset=`.
fn charset(text: &[u8]) -> Option<&'static Encoding> {
    let text = text.to_ascii_lowercase();
    let place = text.windows(8).position(|window| window == b"charset=")?;
    let label = text[place + 8..].trim_ascii_start();
    let label = label.strip_prefix(b"\"").or_else(|| label.strip_prefix(b"'")).unwrap_or(label);
    let end =
        label.iter().position(|byte| matches!(byte, b'"' | b'\'' | b';' | b'>' | b'/' | b' ')).unwrap_or(label.len());
    Encoding::for_label(&label[..end])
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::{Map, Value, json};

    use super::{Described, describe};
    use crate::previews::Page;

    fn of(content_type: &str, body: &[u8]) -> Described {
        let page = Page {
            url: "https://a.example/b/c".parse().unwrap(),
            content_type: Some(content_type.to_owned()),
            body: Bytes::copy_from_slice(body),
            is_whole: true,
        };
        describe(&page, 100_000)
    }

    fn told(described: Described) -> Value {
        let mut preview = Map::new();
        described.add_to(&mut preview);
        preview.into()
    }

    /// What OpenGraph says counts before the title and the description.
    #[test]
    fn pages_are_read() {
        let page = of(
            "text/html",
            br#"<!doctype html><TITLE>A &amp; <b>B</b>
             </title><meta name=description content="  some
             words "><meta property="og:image" content="../d.png"><meta property='og:image' content='second'>
             <script>"<meta property=og:title content=no>"</script>
             <link rel=alternate type="application/json+oembed" href="/oembed?x">"#,
        );
        assert_eq!(page.picture.as_ref().unwrap().as_str(), "https://a.example/d.png");
        assert_eq!(page.oembed.as_ref().unwrap().as_str(), "https://a.example/oembed?x");
        assert_eq!(told(page), json!({ "og:title": "A & <b>B</b>", "og:description": "some words" }));
        let page = of("text/html", b"<title>x</title><meta property='og:title' content='y'><meta property='og:title' \
             content='z'><meta property='og:image:width' content='1'><title>second</title><meta property='og:url' content=''>");
        assert_eq!(told(page), json!({ "og:title": "y" }));
        assert_eq!(told(of("text/html", b"<<<>\0\xff<meta><meta content=x><title>")), json!({}));
    }

    /// Characters are read as the header says, or the page.
    #[test]
    fn characters_are_read() {
        let title = |content_type, body: &[u8]| told(of(content_type, body))["og:title"].as_str().unwrap().to_owned();
        assert_eq!(title("text/html; charset=ISO-8859-1", b"<title>caf\xe9"), "café");
        assert_eq!(title("text/html", b"<meta charset='windows-1251'><title>\xcf\xf0\xe8"), "При");
        let declared = b"<meta http-equiv=Content-Type content=\"text/html; charset=Shift_JIS\"><title>\x93\xfa\x96{";
        assert_eq!(title("text/html", declared), "日本");
        assert_eq!(title("text/html; charset=nonsense", "<title>ä".as_bytes()), "ä");
        assert_eq!(title("text/html; charset=iso-8859-1", "\u{feff}<title>ä".as_bytes()), "ä");
    }

    /// An oEmbed document fills the gaps.
    #[test]
    fn oembed_fills_the_gaps() {
        let mut page = of("text/html", b"<meta property=og:title content=T>");
        let document = json!({ "title": "other", "provider_name": "P", "thumbnail_url": "t.png", "author_name": 7 });
        page.add_oembed(document.as_object().unwrap(), &"https://b.example/x/y".parse().unwrap());
        assert_eq!(page.picture.as_ref().unwrap().as_str(), "https://b.example/x/t.png");
        assert_eq!(told(page), json!({ "og:title": "T", "og:site_name": "P" }));
    }
}
