//! Objects and arrays, accounts and errors: what every allocator has to do with values.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use hshm::{
    CtxAllocator, Error, ErrorCode, FullPtr, KIB, LeakCheck, LeakReport, MIB, MemContext, ShmPtr,
};

use crate::subject::{Maker, Subject};
use crate::suite::Live;

const CTX: MemContext = MemContext::DEFAULT;

/// Counts how often each value is dropped.
#[derive(Default)]
struct Ledger {
    drops: RefCell<BTreeMap<usize, usize>>,
    made: Cell<usize>,
    /// The value whose Drop panics.
    bomb: Cell<usize>,
}

struct Counted {
    ledger: Rc<Ledger>,
    number: usize,
    text: String,
}

impl Ledger {
    fn value(self: &Rc<Self>) -> Counted {
        let number = self.made.replace(self.made.get() + 1) + 1;
        Counted { ledger: self.clone(), number, text: format!("value {number}") }
    }
    /// Every value that was made was dropped, and once.
    #[track_caller]
    fn check(&self, made: usize) {
        assert_eq!(self.made.get(), made);
        let drops = self.drops.borrow();
        assert!((1..=made).all(|number| drops.get(&number) == Some(&1)), "{drops:?}");
        assert_eq!(drops.len(), made);
    }
}

impl Counted {
    #[track_caller]
    fn check(&self, number: usize) {
        assert_eq!((self.number, self.text.as_str()), (number, &*format!("value {number}")));
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        *self.ledger.drops.borrow_mut().entry(self.number).or_default() += 1;
        if self.ledger.bomb.get() == self.number {
            panic!("bomb");
        }
    }
}

/// The value at `index` of an array that has more than that.
fn at<'a, T>(array: FullPtr<T>, index: usize) -> &'a T {
    // SAFETY: only called for values that are there, and nobody writes to them meanwhile.
    unsafe { array.add(index).as_ref().unwrap() }
}

pub fn objects<S: Subject>(maker: &Maker) {
    let alloc = S::make(maker.region(16 * MIB));
    let before = alloc.currently_allocated_size();
    let ledger = Rc::new(Ledger::default());
    let one = alloc.new_obj(CTX, ledger.value()).unwrap();
    let two = alloc.new_obj_with(CTX, || ledger.value()).unwrap();
    let vector = alloc.new_obj(CTX, vec![1, 2, 3]).unwrap();
    #[repr(align(256))]
    struct Wide(u8);
    let wide = alloc.new_obj(CTX, Wide(7)).unwrap();
    let nothing = alloc.new_obj(CTX, ()).unwrap();
    at(one, 0).check(1);
    at(two, 0).check(2);
    assert!(wide.as_ptr().is_aligned() && at(wide, 0).0 == 7);
    // SAFETY: made above, and nobody else uses them; each is deleted once.
    unsafe {
        vector.as_mut().unwrap().push(4);
        assert_eq!(at(vector, 0), &[1, 2, 3, 4]);
        alloc.del_obj(CTX, vector).unwrap();
        alloc.del_obj(CTX, wide).unwrap();
        alloc.del_obj(CTX, nothing).unwrap();
        alloc.del_obj(CTX, one).unwrap();
        CtxAllocator::new(&alloc, CTX).del_obj(two).unwrap();
    }
    ledger.check(2);
    assert_eq!(alloc.currently_allocated_size(), before);
    // Where there is no room the value goes, and none is made.
    struct Huge(#[allow(dead_code)] [u8; 1 << 25], #[allow(dead_code)] Counted);
    if S::BOUNDED {
        let made = alloc.new_obj_with(CTX, || -> Huge { unreachable!() });
        assert_eq!(made.unwrap_err().code(), ErrorCode::OutOfMemory);
    }
    alloc.check(0);
}

pub fn arrays<S: Subject>(maker: &Maker) {
    let alloc = S::make(maker.region(32 * MIB));
    let bound = CtxAllocator::new(&alloc, CTX);
    let before = alloc.currently_allocated_size();
    let ledger = Rc::new(Ledger::default());
    let numbers = alloc.new_objs::<u64>(CTX, 50).unwrap();
    assert!((0..50).all(|index| *at(numbers, index) == 0));
    let mut array = bound.new_objs_with(10, |_| ledger.value()).unwrap();
    let mut model: Vec<usize> = (1..=10).collect();
    let mut indices = Vec::new();
    // Up and down, in place and not, to nothing and back.
    for count in [20, 2000, 2000, 1500, 3, 0, 0, 7, 500, 499, 1] {
        // SAFETY: the array has as many values as the model, and only the result is used again.
        array = unsafe {
            alloc.reallocate_objs_with(CTX, array, model.len(), count, |index| {
                indices.push(index);
                ledger.value()
            })
        }
        .unwrap();
        let grown = model.len()..count;
        assert_eq!(indices, grown.clone().collect::<Vec<_>>());
        indices.clear();
        let first = ledger.made.get() + 1 - grown.len();
        model.truncate(count);
        model.extend(first..first + grown.len());
        model.iter().enumerate().for_each(|(index, number)| at(array, index).check(*number));
        assert_eq!(ledger.drops.borrow().len(), ledger.made.get() - model.len());
    }
    // SAFETY: as above.
    unsafe {
        let numbers = alloc.reallocate_objs(CTX, numbers, 50, 5000).unwrap();
        assert!((0..5000).all(|index| *at(numbers, index) == 0));
        alloc.del_objs(CTX, numbers, 5000).unwrap();
        alloc.del_objs(CTX, array, 1).unwrap();
        let none = bound.new_objs::<String>(0).unwrap();
        bound.del_objs(none, 0).unwrap();
        let units = bound.new_objs::<()>(usize::MAX).unwrap();
        let units = bound.reallocate_objs(units, usize::MAX, 5).unwrap();
        bound.del_objs(units, 5).unwrap();
    }
    ledger.check(ledger.made.get());
    assert_eq!(alloc.currently_allocated_size(), before);
    alloc.check(0);
}

/// Runs what panics, quietly.
#[track_caller]
fn panics(work: impl FnOnce()) {
    assert!(catch_unwind(AssertUnwindSafe(work)).is_err());
}

pub fn panics_in_constructors<S: Subject>(maker: &Maker) {
    let alloc = S::make(maker.region(16 * MIB));
    let before = alloc.currently_allocated_size();
    for fatal in [0, 1, 7, 99] {
        let ledger = Rc::new(Ledger::default());
        panics(|| {
            let made = alloc.new_objs_with(CTX, 100, |index| {
                assert_ne!(index, fatal);
                ledger.value()
            });
            let _ = made;
        });
        ledger.check(fatal);
        assert_eq!(alloc.currently_allocated_size(), before);
        panics(|| {
            let _ = alloc.new_obj_with(CTX, || -> String { panic!("none") });
        });
        assert_eq!(alloc.currently_allocated_size(), before);
        // An array that grows: those that were there go, too.
        let array = alloc.new_objs_with(CTX, 10, |_| ledger.value()).unwrap();
        panics(|| {
            // SAFETY: ten values; the array is not used again.
            let grown = unsafe {
                alloc.reallocate_objs_with(CTX, array, 10, 1000, |index| {
                    assert_ne!(index, 10 + fatal);
                    ledger.value()
                })
            };
            let _ = grown;
        });
        ledger.check(2 * fatal + 10);
        assert_eq!(alloc.currently_allocated_size(), before);
    }
    alloc.check(0);
}

pub fn panics_in_destructors<S: Subject>(maker: &Maker) {
    let alloc = S::make(maker.region(16 * MIB));
    let before = alloc.currently_allocated_size();
    let ledger = Rc::new(Ledger::default());
    let one = alloc.new_obj(CTX, ledger.value()).unwrap();
    let array = alloc.new_objs_with(CTX, 20, |_| ledger.value()).unwrap();
    ledger.bomb.set(1);
    // SAFETY: made above, and each is deleted once.
    panics(|| unsafe { alloc.del_obj(CTX, one).unwrap() });
    // In the part that is cut off: the rest stays.
    ledger.bomb.set(16);
    // SAFETY: as above.
    panics(|| {
        // SAFETY: as above.
        let _ = unsafe { alloc.reallocate_objs_with(CTX, array, 20, 12, |_| ledger.value()) };
    });
    (0..12).for_each(|index| at(array, index).check(index + 2));
    ledger.bomb.set(5);
    // SAFETY: as above; twelve are left.
    panics(|| unsafe { alloc.del_objs(CTX, array, 12).unwrap() });
    ledger.check(21);
    assert_eq!(alloc.currently_allocated_size(), before);
    alloc.check(0);
}

pub fn object_calls_that_are_refused<S: Subject>(maker: &Maker) {
    let alloc = S::make(maker.region(16 * MIB));
    let mut live = Live::new(&alloc);
    live.allocate(100, 8);
    let used = alloc.currently_allocated_size();
    let overflows =
        |error: Error| matches!(error, Error::OutOfMemory { requested: usize::MAX, .. });
    for count in [usize::MAX, usize::MAX / 8, usize::MAX / 8 + 1, isize::MAX as usize / 8 + 1] {
        assert!(overflows(alloc.new_objs::<u64>(CTX, count).unwrap_err()), "{count:#x}");
    }
    let ledger = Rc::new(Ledger::default());
    let array = alloc.new_objs_with(CTX, 3, |_| ledger.value()).unwrap();
    let with = |count| {
        // SAFETY: three values; it fails, and so they stay.
        unsafe { alloc.reallocate_objs_with(CTX, array, 3, count, |_| unreachable!()) }.unwrap_err()
    };
    assert!(overflows(with(usize::MAX)));
    assert_eq!(with(1 << 43).code(), ErrorCode::OutOfMemory);
    // Null, foreign, no block, and a block that is too small: nothing is dropped.
    let wild = FullPtr::from_offset(&alloc, array.offset().cast::<u8>().add(16)).unwrap();
    let foreign = ShmPtr::new(hshm::AllocatorId::new(0xF00, 0), array.offset());
    // SAFETY: all are refused.
    unsafe {
        assert!(alloc.del_obj(CTX, FullPtr::<Counted>::NULL).is_err());
        assert!(alloc.del_obj(CTX, wild.cast::<Counted>()).is_err());
        let foreign = alloc.del_obj(CTX, FullPtr::from_parts(array.as_ptr(), foreign));
        assert_eq!(foreign.unwrap_err().code(), ErrorCode::ForeignPointer);
        let small = alloc.del_objs(CTX, array, 100_000);
        assert_eq!(small.unwrap_err().code(), ErrorCode::TooSmall);
        let small = alloc.reallocate_objs_with(CTX, array, 100_000, 5, |_| unreachable!());
        assert_eq!(small.unwrap_err().code(), ErrorCode::TooSmall);
    }
    (0..3).for_each(|index| at(array, index).check(index + 1));
    // SAFETY: made above.
    unsafe { alloc.del_objs(CTX, array, 3).unwrap() };
    // Double: the values are not dropped again.
    // SAFETY: refused.
    assert!(unsafe { alloc.del_objs(CTX, array, 3) }.is_err());
    ledger.check(3);
    assert_eq!(alloc.currently_allocated_size(), used);
    live.finish();
}

/// `requested` is what was asked for, `available` what is there: as much can be had, and no more.
pub fn errors_are_truthful<S: Subject>(maker: &Maker) {
    const BLOCK: usize = 16 * KIB;
    let alloc = S::make(maker.region(24 * MIB));
    #[track_caller]
    fn told<S: Subject>(alloc: &S, size: usize) -> usize {
        let error = alloc.allocate::<u8>(CTX, size).unwrap_err();
        let Error::OutOfMemory { requested, available } = error else { panic!("{error}") };
        assert_eq!(requested, size);
        assert_eq!(available, alloc.available(), "the error and the allocator agree");
        available
    }
    if !S::BOUNDED {
        assert!(told(&alloc, 1 << 48) > 64 * MIB);
        return;
    }
    let near = |told: usize, had: usize| told.abs_diff(had) <= told.max(had) / 16 + 2 * BLOCK;
    let first = told(&alloc, 24 * MIB);
    let mut live = Live::new(&alloc);
    let mut blocks = Vec::new();
    while let Ok(block) = alloc.allocate::<u8>(CTX, BLOCK) {
        blocks.push(block);
    }
    assert!(near(first, blocks.len() * BLOCK), "{first} told, {} had", blocks.len() * BLOCK);
    assert!(told(&alloc, BLOCK) < BLOCK);
    if S::REUSES {
        // Every other one comes back: much is free, but nothing large.
        for block in blocks.iter().step_by(2) {
            // SAFETY: live, and not used again.
            unsafe { alloc.free(CTX, *block).unwrap() };
        }
        let freed = blocks.len().div_ceil(2) * BLOCK;
        let half = told(&alloc, 20 * MIB);
        assert!(near(half, freed), "{half} told, {freed} freed");
        let mut again = 0;
        while let Ok(block) = alloc.allocate::<u8>(CTX, BLOCK) {
            blocks[2 * again] = block;
            again += 1;
        }
        assert!(near(half, again * BLOCK), "{half} told, {} had", again * BLOCK);
    }
    // Sizes that overflow say what is there, too.
    let error = alloc.new_objs::<u64>(CTX, usize::MAX).unwrap_err();
    assert_eq!(error, Error::OutOfMemory { requested: usize::MAX, available: alloc.available() });
    let error = alloc.allocate::<u8>(CTX, usize::MAX).unwrap_err();
    assert_eq!(error, Error::OutOfMemory { requested: usize::MAX, available: alloc.available() });
    for block in blocks {
        // SAFETY: live, and not used again.
        unsafe { alloc.free(CTX, block).unwrap() };
    }
    live.blocks.clear();
    live.finish();
    alloc.recover();
    let last = told(&alloc, 24 * MIB);
    assert!(near(first, last), "{first} at first, {last} in the end");
}

pub fn blocks_are_visited<S: Subject>(maker: &Maker) {
    let alloc = S::make(maker.region(64 * MIB));
    let mut live = Live::new(&alloc);
    let check = |live: &Live<'_, S>| {
        let mut found = BTreeMap::new();
        let mut bytes = 0;
        alloc
            .visit_blocks(&mut |block| {
                assert!(block.own);
                bytes += block.size;
                assert!(found.insert(block.offset.offset(), block.size).is_none(), "twice");
            })
            .unwrap();
        assert!(found.keys().eq(live.blocks.keys()), "{found:x?} {:x?}", live.blocks);
        for (offset, size) in &found {
            assert!(*size >= live.blocks[offset].0);
            assert_eq!(alloc.usable_size(hshm::OffsetPtr::new(*offset)), Ok(*size));
        }
        let account = alloc.currently_allocated_size();
        // Some count what lies before each block, too.
        assert!(account >= bytes && account <= bytes + 32 * found.len(), "{account} {bytes}");
    };
    check(&live);
    let mut random = 88172645463325252u64;
    for round in 0..600 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let size = match round % 20 {
            0 => 3 * MIB,
            1..4 => (random % 200_000) as usize + 1,
            _ => (random % 3000) as usize + 1,
        };
        let align = 1 << (random >> 32 & 7) << if round % 50 == 3 { 6 } else { 0 };
        if round % 20 == 0 || random >> 60 < 4 {
            // The last one or another: holes of all kinds.
            let last = live.blocks.keys().next_back().copied();
            let some = live.blocks.keys().nth(random as usize % live.blocks.len().max(1)).copied();
            if let Some(gone) = if random >> 59 & 1 == 0 { last } else { some } {
                live.free(gone);
            }
        }
        if round % 20 != 0 || round < 100 {
            live.allocate(size, align);
        }
        if round % 37 == 0 {
            check(&live);
        }
    }
    check(&live);
    live.finish();
}

pub fn leaks_are_reported<S: Subject>(maker: &Maker) {
    let alloc = S::make(maker.region(16 * MIB));
    LeakCheck::new(&alloc).finish().unwrap();
    let kept = alloc.allocate::<u8>(CTX, 777).unwrap();
    {
        // Balanced use is no leak, whatever was there before.
        let _check = LeakCheck::new(&alloc);
        let other = alloc.new_obj(CTX, [0u8; 777]).unwrap();
        // SAFETY: made above.
        unsafe { alloc.del_obj(CTX, other).unwrap() };
    }
    let before = LeakReport::of(&alloc).unwrap();
    assert_eq!((before.id(), before.blocks(), before.is_empty()), (alloc.id(), 1, false));
    let check = LeakCheck::new(&alloc);
    let leaked: Vec<_> =
        [100, 100, 3000, 300 * KIB].map(|size| alloc.allocate::<u8>(CTX, size).unwrap()).into();
    let report = check.finish().unwrap_err();
    assert_eq!(report.blocks(), 4);
    assert_eq!(report, LeakReport::of(&alloc).unwrap().since(&before));
    assert_eq!(LeakReport::of_this_process(&alloc).unwrap().blocks(), 5);
    let classes: Vec<_> = report.classes().collect();
    assert_eq!(classes.iter().map(|class| class.blocks).collect::<Vec<_>>(), [2, 1, 1]);
    for (class, size) in classes.iter().zip([100, 3000, 300 * KIB]) {
        assert!(class.size >= size && class.bytes >= class.blocks * size, "{class:?}");
    }
    assert_eq!(report.bytes(), classes.iter().map(|class| class.bytes).sum());
    let text = report.to_string();
    assert!(text.contains("4 blocks") && text.lines().count() == 4, "{text}");
    // The guard fails with the report.
    let failed = catch_unwind(AssertUnwindSafe(|| {
        let _check = LeakCheck::new(&alloc);
        alloc.allocate::<u8>(CTX, 5000).unwrap()
    }));
    let message = *failed.unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains("1 block"), "{message}");
    let mut rest = Vec::new();
    alloc.visit_blocks(&mut |block| rest.push(block.offset)).unwrap();
    assert_eq!(rest.len(), 6);
    assert!(leaked.iter().all(|block| rest.contains(&block.offset())));
    assert!(rest.contains(&kept.offset()));
    // Where blocks can only go back in turn, the last ones first.
    rest.sort();
    for block in rest.into_iter().rev() {
        // SAFETY: all of them are this test's.
        unsafe { alloc.free_offset(CTX, block).unwrap() };
    }
    assert!(LeakReport::of(&alloc).unwrap().is_empty());
    alloc.check(0);
}
