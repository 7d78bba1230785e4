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
    /// A candidate that is refused for a higher ballot asks again at once.
    NeverGiveWay,
    /// What an operator founds in place of a lineage is the same lineage.
    ForceTheSame,
    /// A coordinator without a quorum stays in office for ever.
    NeverStepDown,
    /// A removal that a predecessor left undecided is proposed without waiting for leases given since.
    AdoptAtOnce,
    /// Who was told to stop leads again under the next view.
    StopUpToNow,
    /// A new core is proposed as soon as it supports the coordinator at all, not for as long as the leases given.
    UncoveredCore,
    /// After a decision by half of the core the other half gets leases before it has stored it.
    LeaseForTheLost,
    /// A founder slot answers at once, although its predecessor's support may still stand.
    UnripeSlots,
    /// A winner whose adopted entry removes itself goes on leading.
    OwnRemoval,
    /// A coordinator that speaks but does not hear counts as present.
    FollowTheDeaf,
    /// Who makes a group wait is never told to step out.
    NobodyStaysBehind,
    /// A coordinator that was stopped counts the silence of others while it could not hear.
    TrustStalls,
    /// A core member that was stopped takes its coordinator for lost before it has listened.
    CandidateFromSleep,
    /// A node that comes and goes is admitted at once every time.
    DampNothing,
    /// Updates are told without the ones before them being known to have been told.
    ChainBroken,
    /// A coordinator for which most others fall silent at once accuses them without waiting.
    NeverDoubt,
    /// A coordinator goes as soon as its own removal is committed, and tells nobody of it.
    GoWithoutAWord,
    /// Half of a core goes on with answers from before the leases of the other half lapsed.
    OldAnswersCount,
    /// Who hears no quorum removes others for silence and proposes a core of its own choice.
    DeafDecides,
    /// A leader acts on a view under a lease from before the ballot that made it.
    OldLeaseLeads,
    /// A node that is blocked for long gives up its lineage without an operator.
    ForceByItself,
}

impl Plant {
    /// All of them.
    pub const ALL: [Self; 51] = [
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
        Self::NeverGiveWay,
        Self::ForceTheSame,
        Self::NeverStepDown,
        Self::AdoptAtOnce,
        Self::StopUpToNow,
        Self::UncoveredCore,
        Self::LeaseForTheLost,
        Self::UnripeSlots,
        Self::OwnRemoval,
        Self::FollowTheDeaf,
        Self::NobodyStaysBehind,
        Self::TrustStalls,
        Self::CandidateFromSleep,
        Self::DampNothing,
        Self::ChainBroken,
        Self::NeverDoubt,
        Self::GoWithoutAWord,
        Self::OldAnswersCount,
        Self::DeafDecides,
        Self::OldLeaseLeads,
        Self::ForceByItself,
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
            Self::NeverGiveWay => "never-give-way",
            Self::ForceTheSame => "force-the-same",
            Self::NeverStepDown => "never-step-down",
            Self::AdoptAtOnce => "adopt-at-once",
            Self::StopUpToNow => "stop-up-to-now",
            Self::UncoveredCore => "uncovered-core",
            Self::LeaseForTheLost => "lease-for-the-lost",
            Self::UnripeSlots => "unripe-slots",
            Self::OwnRemoval => "own-removal",
            Self::FollowTheDeaf => "follow-the-deaf",
            Self::NobodyStaysBehind => "nobody-stays-behind",
            Self::TrustStalls => "trust-stalls",
            Self::CandidateFromSleep => "candidate-from-sleep",
            Self::DampNothing => "damp-nothing",
            Self::ChainBroken => "chain-broken",
            Self::NeverDoubt => "never-doubt",
            Self::GoWithoutAWord => "go-without-a-word",
            Self::OldAnswersCount => "old-answers-count",
            Self::DeafDecides => "deaf-decides",
            Self::OldLeaseLeads => "old-lease-leads",
            Self::ForceByItself => "force-by-itself",
        }
    }
}
