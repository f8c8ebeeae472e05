//! Tables as `docker ps` and `kubectl get` print them: a header, columns as wide as their widest cell, three spaces
//! between, nothing after the last.

use std::fmt;

use crate::text::escape_control;

const GAP: usize = 3;

/// Rows under a header. Cells are made safe for a terminal as they come in.
#[derive(Debug)]
pub struct Table<const N: usize> {
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    /// An empty table with this header.
    pub fn new(header: [&str; N]) -> Self {
        Self { rows: vec![header.map(str::to_owned)] }
    }

    /// Adds a row; an empty cell is printed as `-`, so that columns can be cut apart by spaces.
    pub fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|c| if c.is_empty() { "-".to_owned() } else { escape_control(&c) }));
    }

    fn widths(&self) -> [usize; N] {
        std::array::from_fn(|i| self.rows.iter().map(|r| r[i].chars().count()).max().unwrap_or(0))
    }
}

impl<const N: usize> fmt::Display for Table<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = self.widths();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(widths) {
                line.push_str(cell);
                line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + GAP));
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout() {
        let mut table = Table::new(["NAME", "VERSION", "IN USE"]);
        table.row(["tzdata".into(), "2026.1".into(), "2".into()]);
        table.row(["é".into(), "10.0.0-beta".into(), String::new()]);
        table.row(["x\x1b[2J".into(), "1".into(), "0".into()]);
        let want = "\
NAME       VERSION       IN USE
tzdata     2026.1        2
é          10.0.0-beta   -
x\\x1b[2J   1             0
";
        assert_eq!(table.to_string(), want);
    }

    #[test]
    fn an_empty_table_still_says_what_it_would_hold() {
        assert_eq!(Table::new(["A", "B"]).to_string(), "A   B\n");
    }
}
