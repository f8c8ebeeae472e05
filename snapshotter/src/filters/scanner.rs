//! From characters to tokens. Follows `scanner.go`, quirks included: what a character means depends on whether an
//! operator came just before it.

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    End,
    Quoted,
    Value,
    Field,
    Separator,
    Operator,
    Illegal,
    /// A character that can begin no token.
    Other,
}

/// What comes next without taking it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peek {
    End,
    Illegal,
    Char(char),
}

impl Peek {
    fn is(self, test: impl FnOnce(char) -> bool) -> bool {
        matches!(self, Self::Char(char) if test(char))
    }
}

#[derive(Debug)]
pub(super) struct Scanner<'a> {
    input: &'a str,
    /// Byte offset of the character read last.
    position: usize,
    /// Byte offset just after it.
    next: usize,
    /// An operator came last: a value follows.
    value: bool,
    /// The first thing that was wrong.
    pub(super) error: Option<&'static str>,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(input: &'a str) -> Self {
        Self { input, position: 0, next: 0, value: false, error: None }
    }

    /// Byte offset of what [`Scanner::peek`] shows.
    pub(super) fn offset(&self) -> usize {
        self.next
    }

    pub(super) fn peek(&mut self) -> Peek {
        let (position, next) = (self.position, self.next);
        let peeked = self.advance();
        (self.position, self.next) = (position, next);
        peeked
    }

    fn advance(&mut self) -> Peek {
        self.position = self.next;
        let Some(char) = self.input[self.next..].chars().next() else { return Peek::End };
        self.next += char.len_utf8();
        match char {
            char::REPLACEMENT_CHARACTER => self.illegal("rune error"),
            '\0' => self.illegal("unexpected null"),
            char => Peek::Char(char),
        }
    }

    fn illegal(&mut self, reason: &'static str) -> Peek {
        self.error.get_or_insert(reason);
        Peek::Illegal
    }

    /// The next token: where it begins, what it is, its text.
    pub(super) fn scan(&mut self) -> (usize, Token, &'a str) {
        let mut peeked = self.advance();
        while peeked.is(char::is_whitespace) {
            peeked = self.advance();
        }
        let start = self.position;
        let token = match peeked {
            Peek::End => Token::End,
            Peek::Illegal => Token::Illegal,
            Peek::Char(char) => self.scan_from(char),
        };
        (start, token, &self.input[start..self.next])
    }

    fn scan_from(&mut self, char: char) -> Token {
        match char {
            '/' | '|' | '"' => self.scan_quoted(char),
            ',' | '.' => {
                self.value = false;
                Token::Separator
            }
            char if is_operator(char) => {
                self.skip(is_operator);
                self.value = true;
                Token::Operator
            }
            _ if self.value => {
                self.skip(is_value);
                self.value = false;
                Token::Value
            }
            char if is_field(char) => {
                self.skip(is_field);
                Token::Field
            }
            _ => Token::Other,
        }
    }

    fn skip(&mut self, wanted: impl Fn(char) -> bool) {
        while self.peek().is(&wanted) {
            self.advance();
        }
    }

    fn scan_quoted(&mut self, quote: char) -> Token {
        let mut legal = true;
        let mut peeked = self.advance();
        while peeked != Peek::Char(quote) {
            match peeked {
                Peek::End | Peek::Illegal | Peek::Char('\n') => {
                    self.illegal("quoted literal not terminated");
                    return Token::Illegal;
                }
                Peek::Char('\\') => {
                    let (after, fine) = self.scan_escape(quote);
                    peeked = after;
                    legal &= fine;
                }
                Peek::Char(_) => peeked = self.advance(),
            }
        }
        if legal { Token::Quoted } else { Token::Illegal }
    }

    /// What follows the escape, and whether it is one.
    fn scan_escape(&mut self, quote: char) -> (Peek, bool) {
        let peeked = self.advance();
        match peeked {
            Peek::Char(char) if char == quote || "abfnrtv\\".contains(char) => (self.advance(), true),
            Peek::Char('0'..='7') => self.scan_digits(peeked, 8, 3),
            Peek::Char('x') => self.scan_more_digits(2),
            Peek::Char('u') => self.scan_more_digits(4),
            Peek::Char('U') => self.scan_more_digits(8),
            _ => {
                self.illegal("illegal escape sequence");
                (peeked, false)
            }
        }
    }

    fn scan_more_digits(&mut self, count: usize) -> (Peek, bool) {
        let first = self.advance();
        self.scan_digits(first, 16, count)
    }

    fn scan_digits(&mut self, first: Peek, base: u32, count: usize) -> (Peek, bool) {
        let mut peeked = first;
        for _ in 0..count {
            if !peeked.is(|char| char.is_digit(base)) {
                self.illegal("illegal numeric escape sequence");
                return (peeked, false);
            }
            peeked = self.advance();
        }
        (peeked, true)
    }
}

fn is_operator(char: char) -> bool {
    matches!(char, '=' | '!' | '~')
}

fn is_field(char: char) -> bool {
    char == '_' || char.is_ascii_alphanumeric()
}

/// Letters, digits, punctuation and symbols: all but the comma, spaces, and what shows nothing.
fn is_value(char: char) -> bool {
    char != ',' && !char.is_whitespace() && !char.is_control() && !is_format(char)
}

/// Unicode's category Cf and the private use areas, which Go counts as not graphic.
fn is_format(char: char) -> bool {
    matches!(
        char,
        '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}'..='\u{891}' | '\u{8e2}'
        | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2064}'
        | '\u{2066}'..='\u{206f}' | '\u{e000}'..='\u{f8ff}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
        | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}' | '\u{e0001}' | '\u{e0020}'..='\u{e007f}' | '\u{f0000}'..='\u{10ffff}'
    )
}
