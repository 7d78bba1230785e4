//! Deliberate bugs, one at a time, to see that the simulator and the checker find them.
//!
//! Built only with the feature `plant` and chosen at run time; without it every question is answered "no" at
//! compile time.

/// A planted bug. Its name is what `phalanx sim --plant NAME` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Plant {
    /// A core member promises to a candidate as if its grant to another had lapsed.
    PromiseEarly,
    /// A winner counts those who stored an entry under an older ballot as if they had stored it under its own.
    CountOldAcks,
    /// A candidate wins with a quorum of the core that it knew when it began, although the log that it learns or adopts
    /// changes the core.
    WinInOldCore,
    /// Across a core change the coordinator takes its authority from the old core alone, for ever.
    AuthorityFromOldCore,
    /// A proof of death counts although the prover's own lease had lapsed when it came.
    LateProof,
    /// A node counts its lease from the receipt of the grant instead of the sending of its heartbeat.
    LeaseFromReceipt,
    /// The coordinator gives full leases instead of what is left of its own authority.
    GrantNotChained,
    /// A new coordinator numbers views from its own last view instead of the agreed counter.
    ReuseViewId,
    /// A winner adopts nothing that its predecessor left undecided.
    AdoptNothing,
    /// A speaking node is removed without waiting for its stop.
    RemoveWithoutStop,
    /// Silence is judged by what a node says, not by what it hears: a deaf node stays.
    DeafIsAlive,
    /// Slot holders that are in a view already count as fresh founders.
    FoundWithStaleSlots,
    /// Any half may go on alone, the senior's or not.
    AnyHalf,
    /// A coordinator that took over early forgets the leases that its predecessor gave.
    ForgetPredecessorsLeases,
    /// A leader's lease is not looked at when its process wakes up.
    LeaseNeverLapses,
    /// A member that steps down goes on acting until it sees the new view.
    StepDownLate,
    /// A node that missed an update takes the next one as if nothing had been before it.
    IgnoreGap,
    /// The coordinator gives view ids that no data directory has set aside.
    UseIdsNotSetAside,
    /// The coordinator raises the feature level to its own without looking at what others understand.
    RaiseTooEarly,
    /// A lineage that an operator gave up does not end where it meets the new one.
    GivenUpGoesOn,
    /// A suspicion is withdrawn even after the leases of the suspect were waited out, or while its removal is under way.
    CallOffLate,
    /// A leader acts before its view is installed behind it.
    LeadUninstalled,
    /// A removed node is not told so.
    TellNobody,
    /// An acceptor accepts under a lower ballot than it promised.
    AcceptBelow,
    /// What is accepted is taken for committed, under whichever ballot.
    CommitAny,
    /// A node that is being removed still gets leases.
    LeaseForTheRemoved,
    /// Where there is a witness, the half with the senior may go on, too.
    WitnessOrSenior,
    /// What a witness recorded counts whatever it had forgotten before.
    IgnoreEpoch,
    /// That the witness recorded some half is enough for any half.
    AnyRecord,
    /// The witness writes records again.
    RecordTwice,
    /// What an operator founds in place of a lineage is the same lineage.
    ForceTheSame,
    /// A founder slot answers at once, although its predecessor's support may still stand.
    UnripeSlots,
    /// Updates are told without the ones before them being known to have been told.
    ChainBroken,
    /// A node that is blocked for long gives up its lineage without an operator.
    ForceByItself,
    /// A member passes the wish to be admitted on to its coordinator, which takes its word for who that is.
    RelayJoins,
}

impl Plant {
    /// All of them.
    pub const ALL: [Self; 35] = [
        Self::PromiseEarly,
        Self::CountOldAcks,
        Self::WinInOldCore,
        Self::AuthorityFromOldCore,
        Self::LateProof,
        Self::LeaseFromReceipt,
        Self::GrantNotChained,
        Self::ReuseViewId,
        Self::AdoptNothing,
        Self::RemoveWithoutStop,
        Self::DeafIsAlive,
        Self::FoundWithStaleSlots,
        Self::AnyHalf,
        Self::ForgetPredecessorsLeases,
        Self::LeaseNeverLapses,
        Self::StepDownLate,
        Self::IgnoreGap,
        Self::UseIdsNotSetAside,
        Self::RaiseTooEarly,
        Self::GivenUpGoesOn,
        Self::CallOffLate,
        Self::LeadUninstalled,
        Self::TellNobody,
        Self::AcceptBelow,
        Self::CommitAny,
        Self::LeaseForTheRemoved,
        Self::WitnessOrSenior,
        Self::IgnoreEpoch,
        Self::AnyRecord,
        Self::RecordTwice,
        Self::ForceTheSame,
        Self::UnripeSlots,
        Self::ChainBroken,
        Self::ForceByItself,
        Self::RelayJoins,
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::PromiseEarly => "promise-early",
            Self::CountOldAcks => "count-old-acks",
            Self::WinInOldCore => "win-in-old-core",
            Self::AuthorityFromOldCore => "authority-from-old-core",
            Self::LateProof => "late-proof",
            Self::LeaseFromReceipt => "lease-from-receipt",
            Self::GrantNotChained => "grant-not-chained",
            Self::ReuseViewId => "reuse-view-id",
            Self::AdoptNothing => "adopt-nothing",
            Self::RemoveWithoutStop => "remove-without-stop",
            Self::DeafIsAlive => "deaf-is-alive",
            Self::FoundWithStaleSlots => "found-with-stale-slots",
            Self::AnyHalf => "any-half",
            Self::ForgetPredecessorsLeases => "forget-predecessors-leases",
            Self::LeaseNeverLapses => "lease-never-lapses",
            Self::StepDownLate => "step-down-late",
            Self::IgnoreGap => "ignore-gap",
            Self::UseIdsNotSetAside => "use-ids-not-set-aside",
            Self::RaiseTooEarly => "raise-too-early",
            Self::GivenUpGoesOn => "given-up-goes-on",
            Self::CallOffLate => "call-off-late",
            Self::LeadUninstalled => "lead-uninstalled",
            Self::TellNobody => "tell-nobody",
            Self::AcceptBelow => "accept-below",
            Self::CommitAny => "commit-any",
            Self::LeaseForTheRemoved => "lease-for-the-removed",
            Self::WitnessOrSenior => "witness-or-senior",
            Self::IgnoreEpoch => "ignore-epoch",
            Self::AnyRecord => "any-record",
            Self::RecordTwice => "record-twice",
            Self::ForceTheSame => "force-the-same",
            Self::UnripeSlots => "unripe-slots",
            Self::ChainBroken => "chain-broken",
            Self::ForceByItself => "force-by-itself",
            Self::RelayJoins => "relay-joins",
        }
    }
}
