//! What a Rust file declares, defines, brings in and names: as much of the language as paths need.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{Delimiter, LexError, TokenStream, TokenTree};

/// The words before an item's name.
const ITEMS: &[&str] = &["struct", "enum", "union", "trait", "type", "fn", "const", "static", "mod"];

/// What a Rust file says, outside of its tests.
#[derive(Default)]
pub(super) struct Source {
    /// Modules that are files of their own.
    pub(super) declared: BTreeSet<String>,
    /// Items.
    pub(super) defined: BTreeSet<String>,
    /// What `use` brings in, by the name that it has here.
    pub(super) bound: BTreeMap<String, Vec<String>>,
    /// The modules of `use a::*`.
    pub(super) globs: BTreeSet<Vec<String>>,
    /// Every path of the code, and of a `use` that is no re-export. A name alone is a path of one.
    pub(super) named: BTreeSet<Vec<String>>,
}

impl Source {
    /// Reads the text of a file.
    ///
    /// # Errors
    /// The text is not Rust.
    pub(super) fn read(text: &str) -> Result<Self, LexError> {
        let mut source = Self::default();
        source.walk(text.parse()?, 0);
        Ok(source)
    }

    /// Reads tokens that have so many modules of this file around them.
    fn walk(&mut self, tokens: TokenStream, inner: usize) {
        let tokens: Vec<_> = tokens.into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            let rest = &tokens[at..];
            at += match &rest[0] {
                _ if is_test(rest) => item_length(rest),
                TokenTree::Ident(word) if word == "use" => self.read_use(&tokens, at, inner),
                TokenTree::Ident(_) => self.read_path(&tokens, at, inner),
                TokenTree::Group(group) => {
                    let module =
                        group.delimiter() == Delimiter::Brace && at > 1 && is(&tokens[at - 2], "mod");
                    self.walk(group.stream(), inner + usize::from(module));
                    1
                }
                _ => 1,
            };
        }
    }

    /// Reads the path that begins here. Returns its length in tokens.
    fn read_path(&mut self, tokens: &[TokenTree], at: usize, inner: usize) -> usize {
        let mut names = vec![tokens[at].to_string()];
        let mut end = at + 1;
        while let [colon, again, TokenTree::Ident(name), ..] = &tokens[end..]
            && is(colon, ":")
            && is(again, ":")
        {
            names.push(name.to_string());
            end += 3;
        }
        let before = |back: usize| at.checked_sub(back).map(|at| tokens[at].to_string()).unwrap_or_default();
        if before(1) == "mod" && tokens.get(end).is_some_and(|next| is(next, ";")) {
            self.declared.extend(names);
        } else if ITEMS.contains(&before(1).as_str()) {
            self.defined.extend(names);
        } else if before(1) != "." && !(before(1) == ":" && before(2) == ":") {
            self.named.insert(from_file(names, inner));
        }
        end - at
    }

    /// Reads a `use`. Returns its length in tokens.
    fn read_use(&mut self, tokens: &[TokenTree], at: usize, inner: usize) -> usize {
        let length = tokens[at..].iter().position(|token| is(token, ";")).unwrap_or(1);
        let exported = match &tokens[..at] {
            [.., word, TokenTree::Group(_)] | [.., word] => is(word, "pub"),
            [] => false,
        };
        for mut names in branches(&tokens[at + 1..at + length], &[]) {
            let name = names.last().cloned().unwrap_or_default();
            match &names[..] {
                [.., keyword, _] if keyword == "as" => names.truncate(names.len() - 2),
                [.., _] if name == "*" => {
                    names.pop();
                    self.globs.insert(from_file(names, inner));
                    continue;
                }
                _ => (),
            }
            let path = from_file(names, inner);
            if !exported {
                self.named.insert(path.clone());
            }
            self.bound.insert(name, path);
        }
        length
    }
}

/// The names of each branch of a `use`, with those before its braces. `as` and `*` count as names.
fn branches(tree: &[TokenTree], before: &[String]) -> Vec<Vec<String>> {
    let branches = tree.split(|token| is(token, ",")).filter(|branch| !branch.is_empty());
    let names = branches.map(|branch| {
        let words = branch.iter().filter(|token| matches!(token, TokenTree::Ident(_)) || is(token, "*"));
        let mut names: Vec<_> = before.iter().cloned().chain(words.map(ToString::to_string)).collect();
        if let Some(TokenTree::Group(braces)) = branch.last() {
            return self::branches(&braces.stream().into_iter().collect::<Vec<_>>(), &names);
        }
        if names.len() > 1 {
            names.retain(|name| name != "self");
        }
        vec![names]
    });
    names.flatten().collect()
}

/// A path as it reads outside of the modules inside of the file.
fn from_file(mut names: Vec<String>, inner: usize) -> Vec<String> {
    let up = names.iter().take(inner).take_while(|name| *name == "super").count();
    names.drain(..up);
    names
}

/// Whether an item begins here that only tests have.
fn is_test(tokens: &[TokenTree]) -> bool {
    let [mark, TokenTree::Group(attribute), ..] = tokens else { return false };
    is(mark, "#") && attribute.stream().to_string().replace(' ', "").starts_with("cfg(test)")
}

/// The tokens of an item: up to its semicolon, or its braces.
fn item_length(tokens: &[TokenTree]) -> usize {
    let braces =
        |token: &TokenTree| matches!(token, TokenTree::Group(g) if g.delimiter() == Delimiter::Brace);
    tokens.iter().position(|token| is(token, ";") || braces(token)).map_or(tokens.len(), |end| end + 1)
}

fn is(token: &TokenTree, text: &str) -> bool {
    !matches!(token, TokenTree::Group(_) | TokenTree::Literal(_)) && token.to_string() == text
}
