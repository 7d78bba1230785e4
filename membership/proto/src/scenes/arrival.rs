//! Who comes: whom it asks first, how often, and how soon it is told.

use super::*;

const HEARTBEAT: Duration = Duration::from_millis(100);

/// A node that never founds.
fn seeker() -> (Ctx, Seeking) {
    let config = Config::new(info(30), Bootstrap::Join, LEASE).expect("valid");
    let ctx = Ctx::new(config, Instant::from_nanos(1 << 40), Rng::seeded(1), ViewId::NONE);
    let seeking = Seeking::new(&ctx);
    (ctx, seeking)
}

/// The addresses that it probes now.
fn probed(ctx: &mut Ctx, seeking: &mut Seeking) -> Vec<SocketAddr> {
    assert!(seeking.on_due(ctx).is_none());
    let probed = ctx.out.drain(..).filter_map(|output| match output {
        Output::Send(Dest::Addr(addr), Msg::Probe(_)) => Some(addr),
        _ => None,
    });
    probed.collect()
}

#[test]
fn who_never_founds_asks_few_at_first_and_soon_all_others() {
    let (mut ctx, mut seeking) = seeker();
    ctx.rendezvous = (1..=20).map(|n| info(n).addr).collect();
    let begin = ctx.now;
    let mut all = probed(&mut ctx, &mut seeking);
    assert_eq!(all.len(), 4);
    ctx.now = seeking.deadline();
    assert!(ctx.now - begin < HEARTBEAT / 2, "they may all be gone");
    all.extend(probed(&mut ctx, &mut seeking));
    all.sort_unstable();
    assert_eq!(all, ctx.rendezvous);
    ctx.now = seeking.deadline();
    assert_eq!(ctx.now - begin, HEARTBEAT + HEARTBEAT / 4, "and then as often as everybody");
}

#[test]
fn a_coordinator_is_asked_once_in_a_round_however_many_name_it() {
    let (mut ctx, mut seeking) = seeker();
    let asked = |seeking: &mut Seeking, ctx: &mut Ctx, from: u32, coordinator: u32| {
        let (lineage, coordinator) = (Lineage::new(1, 1), Some(info(coordinator)));
        let (last_view, supersedes) = (ViewId::NONE, Vec::new());
        let standing = Standing::Member { lineage, active: true, coordinator, last_view, supersedes };
        assert!(seeking.on_probe(ctx, Probe { info: info(from), standing, answer: false }).is_none());
        let asked = ctx.out.drain(..).filter_map(|output| match output {
            Output::Send(Dest::Node(to, _), Msg::Join(_)) => Some(to),
            _ => None,
        });
        asked.collect::<Vec<_>>()
    };
    assert_eq!(asked(&mut seeking, &mut ctx, 1, 1), [id(1)]);
    assert_eq!(asked(&mut seeking, &mut ctx, 2, 1), []);
    assert_eq!(asked(&mut seeking, &mut ctx, 3, 4), [id(4)], "another one");
    ctx.now = seeking.deadline();
    assert!(seeking.on_due(&mut ctx).is_none());
    ctx.out.clear();
    assert_eq!(asked(&mut seeking, &mut ctx, 5, 1), [], "both were asked again");
}

#[test]
fn who_begins_to_act_is_told_first_and_then_who_comes() {
    let mut scene = Scene::in_office();
    scene.decide_all();
    {
        let Scene { ctx, member } = &mut scene;
        let (office, acceptor) = (member.office.as_mut().expect("in office"), member.acceptor.as_ref());
        let acceptor = acceptor.expect("it keeps the log");
        let wish =
            |group: u64| GroupWish::Join { group: self::group(group), endpoint: None, kind: Kind::Plain };
        let join = |n| Join {
            info: info(n),
            lease: LEASE,
            highest: ViewId::NONE,
            floor: None,
            wishes: Vec::new(),
            observes: Vec::new(),
            level: 0,
            witness: false,
        };
        for n in [8, 9] {
            office.on_join(ctx, acceptor, &member.deaths, id(n), join(n));
        }
        office.on_wishes(acceptor, id(4), [(1, wish(1))].into());
    }
    assert_eq!(scene.member.settle(&mut scene.ctx), None);
    let mut told = Vec::new();
    while told.is_empty() {
        for (to, msg) in scene.said() {
            match (to, msg) {
                (Dest::Node(to, _), ClusterMsg::Append { ballot, index, sent, .. }) => {
                    let office = scene.member.office.as_mut().expect("in office");
                    office.on_accepted(&scene.ctx, to, ballot, index, sent);
                }
                (Dest::Node(to, _), ClusterMsg::Update(_)) => told.push(to),
                _ => {}
            }
        }
        scene.wait(HEARTBEAT);
        assert_eq!(scene.member.settle(&mut scene.ctx), None);
    }
    assert_eq!(told, [4, 8, 9, 3].map(id));
}
