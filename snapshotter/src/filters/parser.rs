//! From tokens to selectors. Follows `parser.go`.

use regex_lite::Regex;

use super::{
    FilterError, Selector, Test,
    quote::unquote,
    scanner::{Peek, Scanner, Token},
};

/// Parses a filter that is not empty.
pub(super) fn parse(input: &str) -> Result<Vec<Selector>, FilterError> {
    Parser { input, scanner: Scanner::new(input) }.selectors()
}

struct Parser<'a> {
    input: &'a str,
    scanner: Scanner<'a>,
}

enum Operator {
    Equal,
    NotEqual,
    Matches,
}

impl Parser<'_> {
    fn selectors(&mut self) -> Result<Vec<Selector>, FilterError> {
        let mut selectors = vec![self.selector()?];
        loop {
            match self.scanner.peek() {
                Peek::End => return Ok(selectors),
                Peek::Char(',') => {
                    self.scanner.scan();
                    selectors.push(self.selector()?);
                }
                Peek::Char(char) => {
                    return Err(self.error(self.scanner.offset(), &format!("unexpected input: {char}")));
                }
                Peek::Illegal => return Err(self.illegal(self.scanner.offset())),
            }
        }
    }

    fn selector(&mut self) -> Result<Selector, FilterError> {
        let path = self.field_path()?;
        if matches!(self.scanner.peek(), Peek::End | Peek::Char(',')) {
            return Ok(Selector { path, test: Test::Present });
        }
        let test = match self.operator()? {
            Operator::Equal => Test::Equal(self.value(false)?),
            Operator::NotEqual => Test::NotEqual(self.value(false)?),
            Operator::Matches => Test::Matches(compile(self.value(true)?)),
        };
        Ok(Selector { path, test })
    }

    fn field_path(&mut self) -> Result<Vec<Vec<u8>>, FilterError> {
        let mut fields = vec![self.field()?];
        while self.scanner.peek() == Peek::Char('.') {
            self.scanner.scan();
            fields.push(self.field()?);
        }
        Ok(fields)
    }

    fn field(&mut self) -> Result<Vec<u8>, FilterError> {
        match self.scanner.scan() {
            (_, Token::Field, text) => Ok(text.as_bytes().to_vec()),
            (start, Token::Quoted, text) => self.unquote(start, text, false),
            (start, Token::Illegal, _) => Err(self.illegal(start)),
            (start, ..) => Err(self.error(start, "expected field or quoted")),
        }
    }

    fn operator(&mut self) -> Result<Operator, FilterError> {
        match self.scanner.scan() {
            (_, Token::Operator, "==") => Ok(Operator::Equal),
            (_, Token::Operator, "!=") => Ok(Operator::NotEqual),
            (_, Token::Operator, "~=") => Ok(Operator::Matches),
            (start, Token::Operator, other) => {
                Err(self.error(start, &format!("unsupported operator {other:?}")))
            }
            (start, Token::Illegal, _) => Err(self.illegal(start)),
            (start, ..) => Err(self.error(start, r#"expected an operator ("=="|"!="|"~=")"#)),
        }
    }

    fn value(&mut self, any_quote: bool) -> Result<Vec<u8>, FilterError> {
        match self.scanner.scan() {
            (_, Token::Value | Token::Field, text) => Ok(text.as_bytes().to_vec()),
            (start, Token::Quoted, text) => self.unquote(start, text, any_quote),
            (start, Token::Illegal, _) => Err(self.illegal(start)),
            (start, ..) => Err(self.error(start, "expected value or quoted")),
        }
    }

    fn unquote(&self, start: usize, text: &str, any_quote: bool) -> Result<Vec<u8>, FilterError> {
        if !any_quote && !text.starts_with('"') {
            return Err(self.error(start, "invalid quote encountered"));
        }
        unquote(text).ok_or_else(|| self.error(start, "unquoting failed: quote syntax error"))
    }

    fn illegal(&self, start: usize) -> FilterError {
        self.error(start, self.scanner.error.unwrap_or("illegal character"))
    }

    fn error(&self, start: usize, reason: &str) -> FilterError {
        let (before, rest) = self.input.split_at_checked(start).unwrap_or((self.input, ""));
        let mut after = rest.chars();
        let marked = match after.next() {
            Some(char) => format!("{before} >|{char}|< {}", after.as_str()),
            None => self.input.to_owned(),
        };
        FilterError { marked, reason: reason.to_owned() }
    }
}

fn compile(pattern: Vec<u8>) -> Option<Regex> {
    let pattern = String::from_utf8(pattern).ok()?;
    Regex::new(&pattern)
        .inspect_err(
            |error| tracing::error!(%pattern, %error, "a filter's regular expression matches nothing"),
        )
        .ok()
}
