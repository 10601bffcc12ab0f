//! What a check is, and what it finds. A check is a pure function of a [`Host`]: the same host, the same findings.

use serde::Serialize;

use crate::host::Host;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Could not be looked at, or does not matter here; the finding says why.
    Skipped,
    /// Worth knowing: a gain left behind, or a property of the host that changes what to expect.
    Info,
    /// A node runs, but slower, less safely or not for long.
    Warning,
    /// A node does not start, or would not keep its promises.
    Fatal,
}

impl Severity {
    /// From the worst to the best, as summaries count them.
    pub const ALL: [Severity; 5] = [Severity::Fatal, Severity::Warning, Severity::Info, Severity::Ok, Severity::Skipped];

    /// Its name in tables and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Severity::Ok => "ok",
            Severity::Skipped => "skipped",
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Fatal => "fatal",
        }
    }
}

/// What one check says of one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// Which of several: a port, a device. Empty when there is only one.
    pub subject: String,
    /// What is.
    pub current: String,
    /// What should be. Empty where nothing is asked.
    pub required: String,
    /// The command or the line of a file that mends it. Empty where nothing is to be mended.
    pub remedy: String,
}

impl Finding {
    fn new(severity: Severity, current: impl Into<String>) -> Finding {
        Finding { severity, subject: String::new(), current: current.into(), required: String::new(), remedy: String::new() }
    }

    /// As it should be.
    pub fn ok(current: impl Into<String>) -> Finding {
        Finding::new(Severity::Ok, current)
    }

    /// Not looked at, for this reason.
    pub fn skipped(reason: impl Into<String>) -> Finding {
        Finding::new(Severity::Skipped, reason)
    }

    /// Worth knowing.
    pub fn info(current: impl Into<String>) -> Finding {
        Finding::new(Severity::Info, current)
    }

    /// Something is lost by it.
    pub fn warning(current: impl Into<String>) -> Finding {
        Finding::new(Severity::Warning, current)
    }

    /// A node can't be run so.
    pub fn fatal(current: impl Into<String>) -> Finding {
        Finding::new(Severity::Fatal, current)
    }

    /// Fatal where `fatal`, a warning otherwise.
    pub fn fatal_if(fatal: bool, current: impl Into<String>) -> Finding {
        Finding::new(if fatal { Severity::Fatal } else { Severity::Warning }, current)
    }

    /// A warning where `warning`, worth knowing otherwise.
    pub fn warning_if(warning: bool, current: impl Into<String>) -> Finding {
        Finding::new(if warning { Severity::Warning } else { Severity::Info }, current)
    }

    /// Of what.
    #[must_use]
    pub fn of(mut self, subject: impl Into<String>) -> Finding {
        self.subject = subject.into();
        self
    }

    /// What it should be.
    #[must_use]
    pub fn wants(mut self, required: impl Into<String>) -> Finding {
        self.required = required.into();
        self
    }

    /// How to get there.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Finding {
        self.remedy = remedy.into();
        self
    }
}

impl From<Finding> for Vec<Finding> {
    fn from(finding: Finding) -> Vec<Finding> {
        vec![finding]
    }
}

/// One thing that is looked at.
pub struct Check {
    /// Never given to anything else: scripts and `--skip` lists hold on to it.
    pub id: &'static str,
    /// What is looked at, as a heading of its finding.
    pub what: &'static str,
    /// Why it matters, and where the answer comes from, for `--explain`.
    pub why: &'static str,
    /// Finds out. At least one finding.
    pub run: fn(&Host) -> Vec<Finding>,
}

impl Check {
    /// The part of the id that names its group: `RDB-IO`.
    #[must_use]
    pub fn group(&self) -> &'static str {
        self.id.rsplit_once('-').map_or(self.id, |(group, _)| group)
    }
}

/// The groups in the order in which they are shown, with their headings.
pub const GROUPS: [(&str, &str); 10] = [
    ("RDB-CFG", "Configuration"),
    ("RDB-KERN", "Kernel"),
    ("RDB-IO", "io_uring"),
    ("RDB-MEM", "Memory and limits"),
    ("RDB-CPU", "Processor"),
    ("RDB-TIME", "Clock"),
    ("RDB-NET", "Network"),
    ("RDB-RDMA", "RDMA"),
    ("RDB-DISK", "Volume and its device"),
    ("RDB-FENCE", "Fencing"),
];
