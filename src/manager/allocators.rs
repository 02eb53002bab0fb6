//! The manager's allocators.
#![allow(unsafe_code)] // lays regions out in bytes that the directory gave

use core::alloc::Layout;
use core::any::Any;
use std::sync::Arc;

use super::backends::{Backing, MemoryBackendId, MemoryManager, State};
use super::directory::{AllocatorInfo, Changing, Place};
use super::kind::{AllocatorKind, AllocatorOptions, ManagedAllocator};
use crate::alloc::{
    Allocator, BuddyAllocator, LeakReport, MallocAllocator, ScalablePageAllocator, StackAllocator,
    ThreadLocalAllocator,
};
use crate::base::units::{GRANULE, PAGE};
use crate::base::{AllocatorId, Error, MemContext, Result, align_up};
use crate::ptr::OffsetPtr;
use crate::region::{Region, RegionOptions};

/// A [`ManagedAllocator`] of whatever type.
pub(super) trait Managed: Send + Sync {
    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
    fn as_allocator(self: Arc<Self>) -> Arc<dyn Allocator>;
    fn allocator(&self) -> &dyn Allocator;
}

impl<A: ManagedAllocator> Managed for A {
    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
    fn as_allocator(self: Arc<Self>) -> Arc<dyn Allocator> {
        self
    }
    fn allocator(&self) -> &dyn Allocator {
        self
    }
}

/// An allocator that this process has.
#[derive(Clone)]
pub(super) struct Open {
    pub(super) backend: MemoryBackendId,
    kind: AllocatorKind,
    alloc: Arc<dyn Managed>,
}

impl Open {
    /// What is still allocated, if anything is: all of it, or what belongs to this process.
    pub(super) fn left(&self, all: bool) -> Option<LeakReport> {
        let alloc = self.alloc.allocator();
        let left = if all { LeakReport::of(alloc) } else { LeakReport::of_this_process(alloc) };
        left.ok().filter(|left| !left.is_empty())
    }
}

fn region_options(options: &AllocatorOptions) -> RegionOptions {
    match options.custom {
        Some((size, align)) => RegionOptions::new().custom_header(size, align),
        None => RegionOptions::new(),
    }
}

impl MemoryManager {
    /// Makes an allocator of all that a backend has left (in one piece), with a custom header of
    /// `custom_header` bytes, 0 for none, at a multiple of 16.
    ///
    /// # Errors
    /// [`Error::UnknownBackend`]; [`Error::AlreadyExists`] for an id that an allocator of the backend,
    /// or of this process, has; [`Error::OutOfMemory`] where nothing is left, with the longest piece as
    /// `available`; [`Error::TooSmall`] where it is too little for the allocator's tables;
    /// [`Error::TableFull`] with 63 allocators; [`Error::UnknownAllocator`] for the null id;
    /// [`Error::Busy`] where another process is in the middle of a change for ten seconds.
    pub fn create_allocator<A: ManagedAllocator>(
        &self,
        backend: MemoryBackendId,
        id: AllocatorId,
        custom_header: usize,
    ) -> Result<Arc<A>> {
        let options = AllocatorOptions::new().custom_header_of(custom_header, 16);
        self.create_allocator_with(backend, id, &options)
    }

    /// [`create_allocator`](Self::create_allocator) with all that can be asked of an allocator.
    pub fn create_allocator_with<A: ManagedAllocator>(
        &self,
        backend: MemoryBackendId,
        id: AllocatorId,
        options: &AllocatorOptions,
    ) -> Result<Arc<A>> {
        let mut state = self.state();
        let backing = state.backing(backend)?;
        if state.open.contains_key(&id) {
            return Err(Error::AlreadyExists);
        }
        let changing = backing.directory.change()?;
        state.sweep(backend, &backing, &changing);
        let place = changing.begin(id, A::KIND, options.size)?;
        let wanted = region_options(options).capacity(place.len as usize).id(id);
        // SAFETY: by the directory, which nobody else changes now, no allocator has these bytes.
        let made = unsafe { backing.directory.region().nest(place.start, &wanted) }
            .and_then(|region| A::make(region, options));
        match made {
            Ok(alloc) => {
                changing.finish(place.index);
                Ok(state.enter(backend, id, Arc::new(alloc)))
            }
            Err(error) => {
                changing.forget(place.index);
                Err(error)
            }
        }
    }

    /// Makes an allocator in a block of another one. The options must give its size, which is rounded up
    /// to 64 KiB. Destroying it frees the block; destroying the parent destroys it, too.
    ///
    /// # Errors
    /// As [`create_allocator`](Self::create_allocator); [`Error::UnknownAllocator`] for the parent;
    /// [`Error::Unsupported`] for a parent without blocks in a region.
    pub fn create_sub_allocator<A: ManagedAllocator>(
        &self,
        parent: AllocatorId,
        id: AllocatorId,
        options: &AllocatorOptions,
    ) -> Result<Arc<A>> {
        let mut state = self.state();
        if state.open.contains_key(&id) {
            return Err(Error::AlreadyExists);
        }
        if options.size < 2 * PAGE {
            return Err(Error::TooSmall { given: options.size, minimum: 2 * PAGE });
        }
        let outer = state.open(parent)?;
        let backing = state.backing(outer.backend)?;
        let around = match outer.alloc.allocator().backing() {
            Some(region) if outer.kind != AllocatorKind::MALLOC => region.clone(),
            _ => return Err(Error::Unsupported),
        };
        let changing = backing.directory.change()?;
        state.sweep(outer.backend, &backing, &changing);
        let parent_place =
            backing.directory.find(parent).ok_or(Error::UnknownAllocator { id: parent })?;
        changing.check_vacancy(id)?;
        let too_large = Error::OutOfMemory {
            requested: options.size,
            available: outer.alloc.allocator().available(),
        };
        let len = align_up(options.size, GRANULE).ok_or(too_large)?;
        let layout = Layout::from_size_align(len, GRANULE).map_err(|_| too_large)?;
        let block = outer.alloc.allocator().allocate_offset(MemContext::DEFAULT, layout)?;
        let start = around.base().addr() - backing.directory.region().base().addr();
        let range = (start as u64 + block.offset(), len as u64);
        let made =
            changing.begin_inside(id, A::KIND, parent_place.index, range).and_then(|place| {
                let wanted = region_options(options).capacity(len).id(id);
                // SAFETY: the block was just allocated, and is used for nothing else; it is freed when
                // nobody has the region any more.
                unsafe { around.nest(block.offset(), &wanted) }
                    .and_then(|region| A::make(region, options))
                    .and_then(|alloc| {
                        // SAFETY: it is this process's block.
                        unsafe { outer.alloc.allocator().keep_offset(block) }.map(|()| alloc)
                    })
                    .inspect(|_| changing.finish(place.index))
                    .inspect_err(|_| changing.forget(place.index))
            });
        match made {
            Ok(alloc) => Ok(state.enter(outer.backend, id, Arc::new(alloc))),
            Err(error) => {
                // SAFETY: whatever was made in the block is gone.
                let _ = unsafe { outer.alloc.allocator().free_offset(MemContext::DEFAULT, block) };
                Err(error)
            }
        }
    }

    /// The allocator of this id, attached now if it is not yet.
    ///
    /// # Errors
    /// [`Error::UnknownAllocator`] for an id that no backend of this manager's has;
    /// [`Error::Incompatible`] for an allocator of another type; others as its attaching.
    pub fn get_allocator<A: ManagedAllocator>(&self, id: AllocatorId) -> Result<Arc<A>> {
        self.attach_allocator(id, &AllocatorOptions::new())
    }

    /// [`get_allocator`](Self::get_allocator) with the limits for this process, and what custom header
    /// there must be. For an allocator that this process has already only the header is looked at.
    pub fn attach_allocator<A: ManagedAllocator>(
        &self,
        id: AllocatorId,
        options: &AllocatorOptions,
    ) -> Result<Arc<A>> {
        let mut state = self.state();
        let (found, expected) = (state.find(id)?.2.kind.number(), A::KIND.number());
        let wrong = Error::Incompatible { found, expected };
        if found != expected {
            return Err(wrong);
        }
        if let Some(open) = state.open.get(&id) {
            if let Some(region) = open.alloc.allocator().backing() {
                region.check_custom(&region_options(options))?;
            }
            return open.alloc.clone().as_any().downcast::<A>().map_err(|_| wrong);
        }
        state.attach::<A>(id, options)
    }

    /// The allocator of this id, of whatever type: for an allocator that this process does not have yet,
    /// one of this crate's.
    ///
    /// # Errors
    /// As [`get_allocator`](Self::get_allocator); [`Error::Unsupported`] for a type that only its own
    /// program knows.
    pub fn get_any_allocator(&self, id: AllocatorId) -> Result<Arc<dyn Allocator>> {
        Ok(self.state().open(id)?.alloc.as_allocator())
    }

    /// What allocators a backend has.
    pub fn allocators(&self, backend: MemoryBackendId) -> Result<Vec<AllocatorInfo>> {
        Ok(self.state().backing(backend)?.directory.list())
    }

    /// Forgets an allocator here; the backend still has it. One that somebody holds goes on working.
    ///
    /// # Errors
    /// [`Error::UnknownAllocator`] where this process does not have it.
    pub fn detach_allocator(&self, id: AllocatorId) -> Result<()> {
        let mut state = self.state();
        let gone = state.open.remove(&id).ok_or(Error::UnknownAllocator { id })?;
        let report = state.report;
        drop(state);
        if let Some(report) = report {
            gone.left(false).iter().for_each(report);
        }
        Ok(())
    }

    /// Destroys an allocator, and those inside it: nobody finds them any more, in any process. Those who
    /// have them keep them; their memory is used again when nobody does.
    ///
    /// # Errors
    /// [`Error::UnknownAllocator`].
    pub fn destroy_allocator(&self, id: AllocatorId) -> Result<()> {
        let mut state = self.state();
        let (backend, backing, _) = state.find(id)?;
        let report = state.report;
        let changing = backing.directory.change()?;
        // Somebody else may have destroyed it meanwhile.
        let place = backing.directory.find(id).ok_or(Error::UnknownAllocator { id })?;
        let before: Vec<_> = backing.directory.list();
        changing.give_up(place.index);
        let gone: Vec<_> = before
            .iter()
            .filter(|info| backing.directory.find(info.id).is_none())
            .filter_map(|info| state.open.remove(&info.id))
            .collect();
        let left: Vec<_> = match report {
            Some(_) => gone.iter().filter_map(|open| open.left(true)).collect(),
            None => Vec::new(),
        };
        drop(gone);
        state.sweep(backend, &backing, &changing);
        drop((changing, state));
        if let Some(report) = report {
            left.iter().for_each(report);
        }
        Ok(())
    }

    /// The allocator for whoever does not care: the one that was set, or else a [`MallocAllocator`].
    pub fn default_allocator(&self) -> Arc<dyn Allocator> {
        let mut state = self.state();
        state.default.get_or_insert_with(|| Arc::new(MallocAllocator::new())).clone()
    }

    /// Makes the allocator of this id the default one. It stays so until another one is set, also when
    /// it is detached or destroyed.
    ///
    /// # Errors
    /// As [`get_any_allocator`](Self::get_any_allocator).
    pub fn set_default_allocator(&self, id: AllocatorId) -> Result<()> {
        let mut state = self.state();
        state.default = Some(state.open(id)?.alloc.as_allocator());
        Ok(())
    }
}

impl State {
    fn enter<A: ManagedAllocator>(
        &mut self,
        backend: MemoryBackendId,
        id: AllocatorId,
        alloc: Arc<A>,
    ) -> Arc<A> {
        self.open.insert(id, Open { backend, kind: A::KIND, alloc: alloc.clone() });
        alloc
    }

    /// Which backend has the allocator.
    fn find(&self, id: AllocatorId) -> Result<(MemoryBackendId, Arc<Backing>, Place)> {
        let mut found = self.backends.iter().filter_map(|(backend, backing)| {
            Some((*backend, backing.clone(), backing.directory.find(id)?))
        });
        // Where two backends have the id, the one that this process has it from already.
        let open = self.open.get(&id).map(|open| open.backend);
        found
            .clone()
            .find(|(backend, ..)| Some(*backend) == open)
            .or_else(|| found.next())
            .ok_or(Error::UnknownAllocator { id })
    }

    fn attach<A: ManagedAllocator>(
        &mut self,
        id: AllocatorId,
        options: &AllocatorOptions,
    ) -> Result<Arc<A>> {
        let (backend, backing, _) = self.find(id)?;
        // While it is attached nobody gives its memory to another one.
        let _changing = backing.directory.change()?;
        let place = backing.directory.find(id).ok_or(Error::UnknownAllocator { id })?;
        let region = region_at(&backing, place, options)?;
        let alloc = Arc::new(A::attach(region, options)?);
        Ok(self.enter(backend, id, alloc))
    }

    /// The allocator of this id, attached by its kind if it is not yet.
    fn open(&mut self, id: AllocatorId) -> Result<Open> {
        if let Some(open) = self.open.get(&id) {
            return Ok(open.clone());
        }
        let options = &AllocatorOptions::new();
        match self.find(id)?.2.kind {
            AllocatorKind::STACK => drop(self.attach::<StackAllocator>(id, options)?),
            AllocatorKind::MALLOC => drop(self.attach::<MallocAllocator>(id, options)?),
            AllocatorKind::SCALABLE_PAGE => {
                drop(self.attach::<ScalablePageAllocator>(id, options)?);
            }
            AllocatorKind::BUDDY => drop(self.attach::<BuddyAllocator>(id, options)?),
            AllocatorKind::THREAD_LOCAL => drop(self.attach::<ThreadLocalAllocator>(id, options)?),
            _ => return Err(Error::Unsupported),
        }
        self.open.get(&id).cloned().ok_or(Error::UnknownAllocator { id })
    }

    /// Gives back what was given up and nobody has any more: to the backend, or to the allocator in
    /// which it lies, if this process has that one.
    fn sweep(&mut self, backend: MemoryBackendId, backing: &Backing, changing: &Changing<'_>) {
        let mut any = true;
        // Without those inside, the ones around may be free.
        while any {
            any = false;
            for place in changing.reclaimable() {
                if place.parent.is_none() || self.free_block(backend, backing, &place) {
                    changing.forget(place.index);
                    any = true;
                }
            }
        }
    }

    /// Gives the block of a sub-allocator back to its parent. Whether it may be forgotten.
    fn free_block(&self, backend: MemoryBackendId, backing: &Backing, place: &Place) -> bool {
        let Some(parent) = backing.directory.parent_of(place) else {
            // The parent was given up: the block goes with it.
            return true;
        };
        let Some(open) = self.open.get(&parent.id).filter(|open| open.backend == backend) else {
            return false;
        };
        let alloc = open.alloc.allocator();
        let Some(around) = alloc.backing() else { return false };
        let offset = place.start - parent.start;
        // What was given back to the system from inside the block, the parent takes for committed.
        if around.must_commit() && around.commit(offset, place.len as usize).is_err() {
            return false;
        }
        // SAFETY: nobody has the region in the block any more.
        let freed = unsafe { alloc.free_offset(MemContext::DEFAULT, OffsetPtr::new(offset)) };
        // A block that is not there, or is not one, will not become one.
        !matches!(freed, Err(Error::Forked | Error::ReadOnly))
    }
}

/// The region of an allocator, by way of those around it.
fn region_at(backing: &Backing, place: Place, options: &AllocatorOptions) -> Result<Region> {
    let mut region = backing.directory.region().clone();
    let mut base = 0;
    for step in backing.directory.way_to(place)? {
        let wanted =
            if step.index == place.index { region_options(options) } else { RegionOptions::new() };
        region = region.attach_nested(step.start - base, step.id, &wanted)?;
        base = step.start;
    }
    Ok(region)
}
