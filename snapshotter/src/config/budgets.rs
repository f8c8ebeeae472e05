//! `[budgets]`: how much attachments may add to limits.

use toml::de::DeValue;

use super::{
    Config,
    parse::{Reader, Value, article, parse_identifier},
};
use crate::resources::{Ceiling, Configured, File};

impl Reader<'_> {
    pub(super) fn budgets(&mut self, config: &mut Config, value: &Value<'_>) {
        let budgets = &mut config.budgets;
        for (key, value) in self.table("budgets", value) {
            match key.get_ref().as_ref() {
                "node" => self.budget(&mut budgets.node, "budgets.node", value),
                "namespace" => self.budget(&mut budgets.namespace, "budgets.namespace", value),
                "pod" => self.budget(&mut budgets.pod, "budgets.pod", value),
                "container" => self.budget(&mut budgets.container, "budgets.container", value),
                "namespaces" => {
                    for (name, value) in self.table("budgets.namespaces", value) {
                        let place = format!("budgets.namespaces.{}", name.get_ref());
                        if let Err(reason) = parse_identifier(name.get_ref()) {
                            self.mistake(name.span(), format!("{place}: {reason}"));
                        }
                        let budget = budgets.namespaces.entry(name.get_ref().to_string()).or_default();
                        self.budget(budget, &place, value);
                    }
                }
                _ => self.unknown(
                    key.span(),
                    &format!("budgets.{}", key.get_ref()),
                    "[budgets.node], [budgets.namespace], [budgets.namespaces.NAME], [budgets.pod] and [budgets.container]",
                ),
            }
        }
    }

    fn budget(&mut self, budget: &mut Configured, place: &str, value: &Value<'_>) {
        for (key, value) in self.table(place, value) {
            let name = format!("{place}.{}", key.get_ref());
            let file: File = match key.get_ref().parse() {
                Ok(file) => file,
                Err(known) => {
                    self.mistake(key.span(), format!("unknown key {name}: {known}"));
                    continue;
                }
            };
            let text = match value.get_ref() {
                DeValue::String(text) => text.to_string(),
                DeValue::Integer(integer) => integer.as_str().to_owned(),
                other => {
                    let what = article(other);
                    self.mistake(
                        value.span(),
                        format!("{name} is {what}, and must be a string or an integer"),
                    );
                    continue;
                }
            };
            match Ceiling::parse(&file, &text) {
                Ok(ceiling) => drop(budget.insert(file, ceiling)),
                Err(reason) => self.mistake(value.span(), format!("{name} is {text:?}: {reason}")),
            }
        }
    }
}
