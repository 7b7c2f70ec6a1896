//! A metric that is read off at each scrape rather than counted along the way.

use std::collections::HashMap;

use prometheus::core::Desc;
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

use super::fault;
use crate::error::Result;

/// Its name and meaning.
#[derive(Debug)]
pub(super) struct Reading {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
}

/// One value with its labels.
pub(super) type Sample<'a> = (Vec<(&'static str, &'a str)>, f64);

impl Reading {
    /// A value that goes up and down.
    pub(super) const fn gauge(name: &'static str, help: &'static str) -> Self {
        Self { name, help, kind: MetricType::GAUGE }
    }

    /// A value that only grows.
    pub(super) const fn counter(name: &'static str, help: &'static str) -> Self {
        Self { name, help, kind: MetricType::COUNTER }
    }

    pub(super) fn desc(&self) -> Result<Desc> {
        Desc::new(self.name.into(), self.help.into(), Vec::new(), HashMap::new()).map_err(fault)
    }

    /// Its only value; nothing where that is not known.
    pub(super) fn one(&self, value: Option<f64>) -> MetricFamily {
        self.each(value.map(|v| (Vec::new(), v)))
    }

    /// Its values. The registry leaves out a metric without any.
    pub(super) fn each<'a>(&self, samples: impl IntoIterator<Item = Sample<'a>>) -> MetricFamily {
        let metrics = samples.into_iter().map(|(labels, value)| self.metric(&labels, value));
        let mut family = MetricFamily::default();
        family.set_name(self.name.into());
        family.set_help(self.help.into());
        family.set_field_type(self.kind);
        family.set_metric(metrics.collect());
        family
    }

    fn metric(&self, labels: &[(&'static str, &str)], value: f64) -> Metric {
        let label = |(name, value): &(&'static str, &str)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        };
        let mut metric = Metric::default();
        metric.set_label(labels.iter().map(label).collect());
        if self.kind == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        metric
    }
}
