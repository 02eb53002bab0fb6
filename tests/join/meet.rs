//! How programs come together in a heap, use each other's objects, and part.

use std::collections::BTreeSet;

use hshm::{AttachedHeap, HeapToken, RegionOptions, Roots, SharedHeap};

use crate::member::{Name, expected};
use crate::support::turn;

#[test]
fn two_programs_have_one_heap() {
    let _turn = turn();
    let name = Name::new("one-heap");
    let (mut one, mut two) = (name.member(), name.member());
    let region = one.ask("region");
    assert_eq!(two.ask("region"), region);
    assert!(region.contains("PosixShm") && region.ends_with(" 1"), "{region}");
    for round in 0..20 {
        let count = 100 + 200 * round;
        let words = one.ask(&format!("make {count}"));
        assert_eq!(two.ask(&format!("sum {words}")), expected(count).to_string());
        // Each grows and drops what the other made.
        let grown = two.ask(&format!("grow {words}"));
        assert_eq!(one.ask(&format!("sum {words}")), grown);
        let (maker, other) =
            if round % 2 == 0 { (&mut one, &mut two) } else { (&mut two, &mut one) };
        assert_eq!(maker.ask(&format!("drop {words}")), "dropped");
        assert_eq!(other.ask("refused"), "0");
    }
    // Blocks of all kinds, freed and resized by the one that did not make them.
    for size in [1, 8, 40, 1000, 30_000, 40_000, 500_000, 2_500_000, 9_000_000] {
        let block = one.ask(&format!("block {size} 7"));
        assert_eq!(two.ask(&format!("check {block} {size} 7")), "true");
        let new = size + size / 2 + 1;
        let block = two.ask(&format!("resize {block} {size} {new}"));
        assert_eq!(one.ask(&format!("check {block} {new} 7")), "true");
        assert_eq!(one.ask(&format!("free {block} {new}")), "freed");
        let block = one.ask(&format!("block {size} 9"));
        assert_eq!(two.ask(&format!("free {block} {size}")), "freed");
    }
    for member in [&mut one, &mut two] {
        assert_eq!(member.ask("refused"), "0");
        assert!(member.ask("verify").starts_with("clean"));
    }
    one.finish();
    assert!(two.ask("verify").starts_with("clean"));
    two.finish();
    assert!(!name.is_there(), "the last one did not remove the name");
}

/// What a program frees goes back to its maker: neither grows with what passes through.
#[test]
fn memory_comes_back_to_its_maker() {
    let _turn = turn();
    let name = Name::new("back");
    let (mut one, mut two) = (name.member(), name.member());
    let mut used = Vec::new();
    for round in 0..60 {
        let words = one.ask("make 3000");
        let blocks =
            [100, 50_000, 3_000_000].map(|size| (one.ask(&format!("block {size} 1")), size));
        assert_eq!(two.ask(&format!("drop {words}")), "dropped");
        for (block, size) in blocks {
            assert_eq!(two.ask(&format!("free {block} {size}")), "freed");
        }
        if round >= 10 {
            let bytes = |member: &mut crate::support::peer::Peer| -> usize {
                member.ask("used").parse().unwrap()
            };
            used.push(bytes(&mut one) + bytes(&mut two));
        }
    }
    let (least, most) = (used.iter().min().unwrap(), used.iter().max().unwrap());
    assert!(most - least < 2 << 20, "{used:?}");
    assert_eq!(two.ask("refused"), "0");
}

#[test]
fn programs_end_in_any_order() {
    let _turn = turn();
    let name = Name::new("any-order");
    let mut first = name.member();
    let region = first.ask("region");
    let mut second = name.member();
    let words = second.ask("make 2000");
    // Whoever made the heap goes first.
    first.finish();
    assert_eq!(second.ask(&format!("sum {words}")), expected(2000).to_string());
    let mut third = name.member();
    assert_eq!(third.ask("region"), region);
    assert_eq!(third.ask(&format!("sum {words}")), expected(2000).to_string());
    assert_eq!(third.ask(&format!("drop {words}")), "dropped");
    second.kill();
    assert!(name.is_there());
    third.ask("reap");
    assert!(third.ask("verify").starts_with("clean"));
    let mut fourth = name.member();
    assert_eq!(fourth.ask("region"), region);
    third.finish();
    assert!(name.is_there());
    assert_eq!(fourth.ask("threads 8"), (0..8).map(|n| expected(n * 10)).sum::<u64>().to_string());
    fourth.finish();
    assert!(!name.is_there());
    // The next one makes a new heap.
    let mut fifth = name.member();
    assert_ne!(fifth.ask("region"), region);
    fifth.kill();
    // It could not remove the name: there is a heap to come back to, in which nobody is.
    let mut sixth = name.member();
    sixth.ask("region");
    assert_eq!(sixth.ask("reap"), "0", "whoever joins looks for the dead at once");
    sixth.finish();
    assert!(!name.is_there());
}

#[test]
fn a_killed_programs_memory_comes_back() {
    let _turn = turn();
    let name = Name::new("killed");
    let mut one = name.member();
    let before: usize = one.ask("used").parse().unwrap();
    for _ in 0..5 {
        let mut two = name.member();
        let own = one.ask("make 1000");
        let words = two.ask("make 20000");
        two.ask("block 60000000 3");
        // The survivor's block in the dead one's hands, and the other way round.
        assert_eq!(two.ask(&format!("sum {own}")), expected(1000).to_string());
        assert_eq!(one.ask(&format!("sum {words}")), expected(20_000).to_string());
        two.kill();
        assert_eq!(one.ask(&format!("sum {own}")), expected(1000).to_string());
        // All of it can be had again without anybody asking for it.
        let room: usize = one.ask("fill").parse().unwrap();
        assert!(room > 150 << 20, "{room}");
        assert_eq!(one.ask("reap"), "0");
        assert_eq!(one.ask(&format!("drop {own}")), "dropped");
        assert!(one.ask("verify").starts_with("clean"));
    }
    let after: usize = one.ask("used").parse().unwrap();
    assert!(after <= before + (1 << 20), "{before} {after}");
    assert_eq!(one.ask("refused"), "0");
}

#[test]
fn what_was_handed_over_outlives_its_maker() {
    let _turn = turn();
    let name = Name::new("handed-over");
    let (mut one, mut two) = (name.member(), name.member());
    for size in [32, 100, 5000, 100_000, 5_000_000] {
        let block = two.ask(&format!("block {size} 5"));
        assert_eq!(two.ask(&format!("transfer {block} nobody")), "Ok(())");
        assert_eq!(one.ask(&format!("transfer {block} me")), "Ok(())");
        // Freed by its maker, whose cache must not keep it with another's name on it.
        let other = two.ask(&format!("block {size} 6"));
        assert_eq!(two.ask(&format!("transfer {other} nobody")), "Ok(())");
        assert_eq!(two.ask(&format!("free {other} {size}")), "freed");
        let lost = two.ask(&format!("block {size} 7"));
        two.kill();
        // It may have found the dead one by itself.
        assert!(["0", "1"].contains(&one.ask("reap").as_str()));
        assert!(one.ask("verify").starts_with("clean"));
        assert_eq!(one.ask(&format!("check {block} {size} 5")), "true");
        // It can be freed like any other, and is none then; what was not handed over is none either.
        assert_eq!(one.ask(&format!("free {block} {size}")), "freed");
        for gone in [&block, &lost] {
            let answer = one.ask(&format!("transfer {gone} me"));
            assert!(answer.starts_with("Err("), "{answer}");
        }
        assert_eq!(one.ask("refused"), "0");
        two = name.member();
    }
    let small = two.ask("block 24 1");
    assert_eq!(two.ask(&format!("transfer {small} nobody")), "Err(Unsupported)");
    two.finish();
    one.finish();
}

/// A program can join what others made by [`SharedHeap`], which then stays.
#[test]
fn a_heap_that_was_made_to_stay() {
    let _turn = turn();
    let name = Name::new("to-stay");
    let options = RegionOptions::new().capacity(128 << 20);
    let alloc = SharedHeap::new(&name.0).create(&options).unwrap();
    let roots = Roots::of(&alloc);
    let root = roots.publish("answer", 42u64).unwrap();
    let mut one = name.member();
    assert!(one.ask("region").starts_with(&alloc.region().id().to_bits().to_string()));
    let words = one.ask("make 500");
    one.kill();
    assert_eq!(alloc.reap(), 1);
    alloc.verify().unwrap_or_else(|fault| panic!("{fault}"));
    drop(alloc);
    let mut two = name.member();
    let again = two.ask("make 500");
    assert!(!again.is_empty() && !words.is_empty());
    two.finish();
    assert!(name.is_there());
    let alloc = SharedHeap::new(&name.0).open(&options).unwrap();
    let roots = Roots::of(&alloc);
    // SAFETY: nobody writes to it.
    assert_eq!(unsafe { roots.get(roots.find::<u64>("answer").unwrap()) }, Ok(&42));
    assert_eq!(roots.find::<u64>("answer").unwrap().generation(), root.generation());
}

/// What somebody published in a heap that programs made by joining it keeps its name, too.
#[test]
fn published_roots_keep_the_name() {
    let _turn = turn();
    let name = Name::new("published");
    let mut one = name.member();
    one.ask("region");
    let options = RegionOptions::new();
    let alloc = SharedHeap::new(&name.0).open(&options).unwrap();
    Roots::of(&alloc).publish("seven", 7u64).unwrap();
    drop(alloc);
    one.finish();
    assert!(name.is_there());
    let alloc = SharedHeap::new(&name.0).open(&options).unwrap();
    Roots::of(&alloc).find::<u64>("seven").unwrap();
}

#[test]
fn of_many_who_come_at_once_one_makes_the_heap() {
    let _turn = turn();
    let name = Name::new("at-once");
    for _ in 0..5 {
        let mut members: Vec<_> = (0..8).map(|_| name.member()).collect();
        members.iter_mut().for_each(|member| member.send("region"));
        let regions: BTreeSet<String> = members.iter_mut().map(|member| member.receive()).collect();
        assert_eq!(regions.len(), 1, "{regions:?}");
        members.iter_mut().for_each(|member| member.send("exit"));
        members.into_iter().for_each(|member| member.wait());
        assert!(!name.is_there());
    }
}

/// Programs that come and go all the time: whoever comes finds a heap, in which the others are.
#[test]
fn coming_and_going_at_once() {
    let _turn = turn();
    let name = Name::new("coming");
    let threads: Vec<_> = (0..4)
        .map(|seed| {
            let name = Name(name.0.clone());
            std::thread::spawn(move || {
                for round in 0..12 {
                    let mut member = name.member();
                    assert!(member.ask("make 50").len() > 8);
                    // They end by exit, by returning, and by force.
                    match (round + seed) % 3 {
                        0 => member.finish(),
                        1 => {
                            member.send("exit");
                            member.wait();
                        }
                        _ => member.kill(),
                    }
                }
                std::mem::forget(name);
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let mut last = name.member();
    assert!(last.ask("verify").starts_with("clean"));
    last.finish();
    assert!(!name.is_there());
}

/// The heap of a process, by the process's id.
#[test]
fn a_joined_heap_is_found_by_process_id() {
    let _turn = turn();
    let name = Name::new("by-pid");
    let (mut one, mut two) = (name.member(), name.member());
    let region = one.ask("region");
    two.ask("region");
    for member in [&one, &two] {
        let token = HeapToken::of_process(member.id()).unwrap();
        assert_eq!(token.regions()[0].pid, member.id());
        // Where this process's own heap happens to lie it is elsewhere.
        let heap = AttachedHeap::attach(&token, &RegionOptions::new().read_only(true)).unwrap();
        assert_eq!(heap.regions().len(), 1);
        assert!(region.starts_with(&heap.regions()[0].id().to_bits().to_string()));
    }
}
