//! One frame: a table of containers, and below it what the chosen one has. Made for 80 columns and 24 lines.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Cell, Paragraph, Row as TableRow, Table, TableState};

use super::sample::{Pressure, Row, Sample, Used, bytes, bytes_each_second, limit, pressures};

/// Lines of what the chosen container has, with its frame.
const DETAILS: u16 = 8;

/// What comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// By namespace and container.
    Name,
    /// The busiest.
    Cpu,
    /// The largest.
    Memory,
    /// What reads and writes most.
    Io,
}

/// What is shown.
#[derive(Debug)]
pub struct Screen {
    sample: Sample,
    order: Order,
    state: TableState,
    /// Why there is nothing newer.
    failed: Option<String>,
}

impl Screen {
    /// Shows a first sample.
    pub fn new(sample: Sample) -> Self {
        let state = TableState::default().with_selected(Some(0));
        let mut screen = Self { sample, order: Order::Name, state, failed: None };
        screen.arrange();
        screen
    }

    /// Shows a newer sample. The container that is chosen stays chosen.
    pub fn show(&mut self, sample: Sample) {
        let name = |row: &Row| (row.namespace.clone(), row.container.clone());
        let chosen = self.chosen().map(name);
        (self.sample, self.failed) = (sample, None);
        self.arrange();
        let there = self.sample.containers.iter().position(|row| Some(name(row)) == chosen);
        self.state.select(Some(there.unwrap_or_default()));
    }

    /// Says why there is nothing newer.
    pub fn fail(&mut self, reason: String) {
        self.failed = Some(reason);
    }

    /// Chooses another container, so many lines below.
    pub fn select(&mut self, by: isize) {
        let last = self.sample.containers.len().saturating_sub(1);
        let at = self.state.selected().unwrap_or_default();
        self.state.select(Some(at.saturating_add_signed(by).min(last)));
    }

    /// Puts others first.
    pub fn sort(&mut self, order: Order) {
        self.order = order;
        self.show(self.sample.clone());
    }

    fn arrange(&mut self) {
        let key = |row: &Row| {
            let used = row.used.as_ref();
            match self.order {
                Order::Name => 0.0,
                Order::Cpu => used.map_or(-1.0, |used| used.cpu),
                #[allow(clippy::cast_precision_loss)] // only compared
                Order::Memory => used.map_or(-1.0, |used| used.memory as f64),
                Order::Io => used.map_or(-1.0, |used| used.read + used.written),
            }
        };
        let name = |row: &Row| (row.namespace.clone(), row.called().to_owned());
        self.sample.containers.sort_by(|a, b| key(b).total_cmp(&key(a)).then_with(|| name(a).cmp(&name(b))));
    }

    fn chosen(&self) -> Option<&Row> {
        self.sample.containers.get(self.state.selected()?)
    }

    /// Draws it.
    pub fn draw(&mut self, frame: &mut Frame<'_>) {
        let parts =
            [Constraint::Length(1), Constraint::Min(3), Constraint::Length(DETAILS), Constraint::Length(1)];
        let [title, table, details, keys] = Layout::vertical(parts).areas(frame.area());
        let count = self.sample.containers.len();
        let heading = format!("capsulectl top: {count} containers with attachments");
        frame.render_widget(Line::from(heading).style(Modifier::BOLD), title);
        frame.render_stateful_widget(table_of(&self.sample), table, &mut self.state);
        frame.render_widget(self.details(), details);
        let bold = Style::from(Modifier::REVERSED);
        let line = match &self.failed {
            Some(reason) => Line::from(reason.clone()).style(bold),
            None => Line::from("q quit  ↑↓ choose  sort by: n name  c CPU  m memory  i I/O"),
        };
        frame.render_widget(line, keys);
    }

    fn details(&self) -> Paragraph<'_> {
        let Some(row) = self.chosen() else {
            return Paragraph::new("Nothing is attached to any container.").block(Block::bordered());
        };
        let pod = row.pod.as_ref().map(|pod| format!(" of pod {pod}")).unwrap_or_default();
        let block = Block::bordered().title(format!(" {}/{}{pod} ", row.namespace, row.called()));
        let mut lines = vec![Line::from(format!("attached  {}", row.attachments.join(", ")))];
        match &row.used {
            Some(used) => lines.extend(details(used).map(Line::from)),
            None => lines.push(Line::from(
                "not measured: its task does not run, or its control groups are of version 1",
            )),
        }
        Paragraph::new(lines).block(block)
    }
}

fn details(used: &Used) -> [String; 5] {
    let pressure = |p: Option<Pressure>| match p {
        Some(p) => format!("some {:.1}% full {:.1}%", p.some, p.full),
        None => "not accounted for".to_owned(),
    };
    [
        format!(
            "memory    {} of {}, swap {}, killed for memory {}",
            bytes(used.memory),
            limit(used.memory_limit, bytes),
            bytes(used.swap),
            used.oom_kills
        ),
        format!("CPU       {:.1}%, kept from it by its limit {:.1}%", used.cpu, used.throttled),
        format!("pids      {} of {}", used.pids, limit(used.pids_limit, |pids| pids.to_string())),
        format!("pressure  CPU {}, memory {}", pressure(used.cpu_pressure), pressure(used.memory_pressure)),
        format!("          I/O {}", pressure(used.io_pressure)),
    ]
}

fn table_of(sample: &Sample) -> Table<'static> {
    let header = ["CONTAINER", "CPU%", "MEMORY", "LIMIT", "PIDS", "READ/s", "WRITE/s", "PSI c/m/i"];
    let widths = [
        Constraint::Min(18),
        Constraint::Length(6),
        Constraint::Length(7),
        Constraint::Length(7),
        Constraint::Length(5),
        Constraint::Length(7),
        Constraint::Length(7),
        Constraint::Length(11),
    ];
    let rows = sample.containers.iter().map(|row| {
        let name = format!("{}/{}", row.namespace, row.called());
        let Some(used) = &row.used else { return TableRow::new([name, "-".to_owned()]) };
        TableRow::new([
            name,
            format!("{:.1}", used.cpu),
            bytes(used.memory),
            limit(used.memory_limit, bytes),
            used.pids.to_string(),
            bytes_each_second(used.read),
            bytes_each_second(used.written),
            pressures(used),
        ])
    });
    Table::new(rows.collect::<Vec<_>>(), widths)
        .header(TableRow::new(header.map(Cell::from)).style(Modifier::UNDERLINED))
        .row_highlight_style(Modifier::REVERSED)
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::sample::tests::{answer, usage};
    use super::*;

    fn drawn(screen: &mut Screen) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).expect("a terminal");
        terminal.draw(|frame| screen.draw(frame)).expect("drawn");
        let buffer = terminal.backend().buffer();
        let line = |y| (0..80).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        (0..24).map(line).collect()
    }

    fn sample(busy: u64) -> Sample {
        let of = |seconds, counted| {
            answer(vec![usage("batch", seconds, 0), usage("web-with-a-very-long-name", seconds, counted)])
        };
        Sample::between(&of(10, 0), &of(12, busy))
    }

    #[test]
    fn all_of_it_is_seen_on_80_columns_and_24_lines() {
        let mut screen = Screen::new(sample(3_000_000));
        let lines = drawn(&mut screen);
        assert!(lines[0].contains("2 containers"), "{lines:#?}");
        let words: Vec<&str> = lines[1].split_whitespace().collect();
        assert_eq!(words.join(" "), "CONTAINER CPU% MEMORY LIMIT PIDS READ/s WRITE/s PSI c/m/i");
        assert!(lines[2].starts_with("default/batch") && lines[3].contains("150.0"), "{lines:#?}");
        assert!(lines[3].ends_with("12/-/0"), "{lines:#?}");
        let all = lines.join("\n");
        for part in [
            "default/batch",
            "tzdata@2026.1, tools@1",
            "1.5M of 64.0M",
            "3 of none",
            "memory not accounted for",
            "I/O some 0.0% full 7.0%",
            "q quit",
        ] {
            assert!(all.contains(part), "{part}: {lines:#?}");
        }
    }

    #[test]
    fn the_chosen_container_stays_chosen_when_others_come_first() {
        let mut screen = Screen::new(sample(0));
        screen.select(1);
        assert_eq!(screen.chosen().expect("one").container, "web-with-a-very-long-name");
        screen.sort(Order::Cpu);
        screen.show(sample(5_000_000));
        assert_eq!(screen.state.selected(), Some(0));
        assert_eq!(screen.chosen().expect("one").container, "web-with-a-very-long-name");
        screen.select(-5);
        screen.select(9);
        assert_eq!(screen.chosen().expect("one").container, "batch");
        screen.fail("capsuled is away".to_owned());
        assert!(drawn(&mut screen)[23].contains("capsuled is away"));
        screen.show(Sample { containers: Vec::new() });
        assert!(drawn(&mut screen).join("").contains("Nothing is attached"));
    }
}
