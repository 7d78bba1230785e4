//! What the checker says: one verdict per predicate, each failure with the events that prove it.

use std::fmt;

use membership_types::trace::Source;
use serde::{Serialize, Serializer};

/// Makes [`Predicate`] of their names, and of what holds if each one holds, in one sentence.
macro_rules! predicates {
    ($($name:ident: $claim:literal,)*) => {
        /// A predicate over traces; `SPEC.md` of this crate states each one in full.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[allow(
            missing_docs,
            reason = "the names are those of SPEC.md; `Predicate::claim` says what each one claims"
        )]
        pub enum Predicate {
            $($name,)*
        }

        impl Predicate {
            /// All predicates that this build judges, in the order of a report.
            pub const ALL: [Self; [$(Self::$name),*].len()] = [$(Self::$name),*];

            /// The name, as in `SPEC.md`.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }

            /// What holds if the predicate holds, in one sentence.
            pub fn claim(self) -> &'static str {
                match self {
                    $(Self::$name => $claim,)*
                }
            }
        }
    };
}

predicates! {
    GM1: "whoever installs a view is in it",
    GM2: "view ids grow at every process",
    GM2n: "no id is given in two lineages, and tokens grow from one to another",
    GM3: "nobody leads a group before installing a view of it",
    GM4: "all who install a view see the same members in the same order",
    GM5: "views form one chain without a fork, and ids grow along it",
    GM6: "a quorum accepted the entry that makes a view before anybody installed it",
    GM6a: "no position of the log is decided twice",
    GM7: "no cluster view is skipped, and the excluded do not come back",
    GM8: "rank is order of joining",
    GM9: "nobody is excluded without a reason",
    GM10: "whoever comes in has shown its sponsor the cluster's key",
    GM11: "two lineages do not lead at once",
    GM12: "who has lost the primary component is silent",
    VS1: "only what was sent is delivered, unchanged",
    VS2: "no message is delivered twice",
    VS3: "a message is delivered in the view that its receiver has",
    VS4: "a message is delivered in the view in which it was sent",
    VS4b: "nobody sends without a view, or while it closes",
    VS5: "who goes from one view to the next together delivered the same messages",
    VS6: "who came along with whom is agreed on",
    VS7: "a sender delivers its own messages",
    VS8: "the messages of one sender come in its order",
    VS9: "a sequenced message follows what its sender had delivered",
    VS10: "who goes from one view to the next together delivered the sequenced messages in one order",
    VS11: "one place of a sequence is one message, for everybody",
    VS12: "a safe message that anybody delivered reaches all who go on",
    VS13: "what is called stable reaches all who go on",
    VS14: "all who have the group's state begin a view with the same",
    LD1: "a token names one reign of one first-ranked member",
    LD2: "a reign is over before the next one begins",
    LD3: "tokens that take effect at a resource never decrease",
    LD4: "who slept through its lease does not go on leading",
    LD5: "answers to \"who leads\" are true and never go back",
    LV1: "the living agree on the view of exactly the living",
    LV2: "what the living send reaches the living",
    LV3: "every group of the living has one leader",
    LV4: "no closing of a view lasts for ever",
    LV5: "the crashed are excluded in time",
    LV6: "without faults nobody is suspected or excluded",
    LV7: "views are few: as many as faults, joins and leaves explain",
    LV8: "where some cannot reach each other, enough who can have one view that stays",
    LV9: "without a quorum the cluster is blocked and says so",
    SE3: "no lineage is given up without the order of somebody on that host",
    SE5: "with certificates, whoever is in a view has proved its name",
}

impl fmt::Display for Predicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for Predicate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// How a predicate came off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Something in the trace could have violated it, and nothing did.
    Pass,
    /// It is violated; the witness proves it.
    Fail,
    /// Nothing in the trace could have violated it, or it was waived; the explanation says which.
    NotExercised,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::NotExercised => "not-exercised",
        })
    }
}

/// One event of a proof.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Witness {
    /// Whose record it is.
    pub src: Source,
    /// Its number in that source.
    pub seq: u64,
    /// Its time, in nanoseconds on the run's clock.
    pub t: u64,
    /// What it says, for people.
    pub text: String,
}

impl fmt::Display for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} #{} at {} ns: {}", self.src, self.seq, self.t, self.text)
    }
}

/// What became of one predicate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Which one.
    pub predicate: Predicate,
    /// How it came off.
    #[serde(rename = "verdict")]
    pub outcome: Outcome,
    /// The events that prove the first violation, in order of time; at most [`Verdict::MAX_WITNESS`].
    pub witness: Vec<Witness>,
    /// What is wrong, or why nothing was judged, or how often the predicate held.
    pub explanation: String,
}

impl Verdict {
    /// No proof has more events than this.
    pub const MAX_WITNESS: usize = 10;
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<5}{:<14}{}", self.predicate, self.outcome, self.explanation)?;
        for event in &self.witness {
            write!(f, "\n       {event}")?;
        }
        Ok(())
    }
}

/// Why a trace is no evidence. An invalid run never passes: verdicts that would be `pass` are not exercised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Invalid {
    /// There was no record at all.
    #[error("the trace is empty")]
    Empty,
    /// The run's terms are not known when the first event happens.
    #[error("the first record, {src} #{seq}, is not Cfg")]
    NoCfg {
        /// Whose record came first.
        src: Source,
        /// Its number.
        seq: u64,
    },
    /// The run's terms make no sense.
    #[error("Cfg of {src}: {why}")]
    BadCfg {
        /// Who says so.
        src: Source,
        /// What is wrong.
        why: String,
    },
    /// A record of another format version.
    #[error("{src} #{seq} has format version {v}, this build reads version 1")]
    Version {
        /// Whose record.
        src: Source,
        /// Its number.
        seq: u64,
        /// The version that it names.
        v: u8,
    },
    /// The tap lost records, or wrote some twice: what is judged might not be what happened.
    #[error("{src} goes from #{after} to #{found}: records are lost or repeated")]
    Hole {
        /// Whose records.
        src: Source,
        /// The last number before the hole; 0 if the source begins with it.
        after: u64,
        /// The number that came instead of the next one.
        found: u64,
    },
    /// Time went back.
    #[error("{src} #{seq} at {t} ns comes after a record of {before} ns")]
    Backwards {
        /// Whose record.
        src: Source,
        /// Its number.
        seq: u64,
        /// Its time.
        t: u64,
        /// The time before it.
        before: u64,
    },
    /// Somebody says what only another one can know.
    #[error("{src} #{seq} may not say {ev}")]
    Untrusted {
        /// Who says it.
        src: Source,
        /// The record's number.
        seq: u64,
        /// The event.
        ev: &'static str,
    },
    /// A source goes on after its `End`.
    #[error("{src} #{seq} comes after the source's End")]
    AfterEnd {
        /// Whose record.
        src: Source,
        /// Its number.
        seq: u64,
    },
    /// The run's end is missing.
    #[error(
        "{src} has no End, and no Crash excuses it: the trace is truncated{}",
        place.as_ref().map(|place| format!(" ({place})")).unwrap_or_default()
    )]
    Truncated {
        /// Whose records break off.
        src: Source,
        /// The file and line where they do, where the trace comes from files.
        #[serde(skip_serializing_if = "Option::is_none")]
        place: Option<String>,
    },
}

/// All verdicts on one trace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// One per predicate, in the order of [`Predicate::ALL`].
    pub verdicts: Vec<Verdict>,
    /// Set if the trace is no evidence. Failures found before that point are kept.
    pub invalid: Option<Invalid>,
}

impl Report {
    /// The verdicts that are failures.
    pub fn failures(&self) -> impl Iterator<Item = &Verdict> {
        self.verdicts.iter().filter(|v| v.outcome == Outcome::Fail)
    }

    /// How many predicates are violated.
    pub fn violations(&self) -> usize {
        self.failures().count()
    }

    /// Is a predicate violated, or the trace no evidence?
    pub fn failed(&self) -> bool {
        self.invalid.is_some() || self.violations() > 0
    }

    /// The verdict on one predicate.
    pub fn verdict(&self, predicate: Predicate) -> &Verdict {
        let found = self.verdicts.iter().find(|v| v.predicate == predicate);
        found.expect("a report has a verdict on every predicate")
    }

    /// What a command that judged this trace exits with: 2 if it is no evidence, 1 on a violation, else 0.
    pub fn exit_code(&self) -> u8 {
        match (&self.invalid, self.violations()) {
            (Some(_), _) => 2,
            (None, 0) => 0,
            (None, _) => 1,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(invalid) = &self.invalid {
            writeln!(f, "invalid: {invalid}")?;
        }
        for verdict in &self.verdicts {
            writeln!(f, "{verdict}")?;
        }
        Ok(())
    }
}
