//! Who is dead, and who is not, where that is not obvious; and that a death leaves no debris.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use hshm::{
    Allocator, Backend, KIB, MIB, MemContext, MemfdBackend, Region, RegionOptions, SharedHeap,
    ThreadLocalAllocator,
};

use super::support::{role, turn, unique};
use super::victim::Victim;
use super::work::{allocate, layout};

const CTX: MemContext = MemContext::DEFAULT;
/// Nobody is that slow.
const LONG: Duration = Duration::from_secs(100);

struct Scene {
    region: Region,
    alloc: ThreadLocalAllocator,
}

impl Scene {
    fn new() -> Scene {
        let region = MemfdBackend::create("", &RegionOptions::new().capacity(64 * MIB)).unwrap();
        let alloc = ThreadLocalAllocator::shm_init(region.clone()).unwrap();
        Scene { region, alloc }
    }

    fn attach(&self) -> ThreadLocalAllocator {
        ThreadLocalAllocator::shm_attach(self.region.clone(), 0, 4).unwrap()
    }

    /// Attaches for good and allocates.
    fn live(&self) {
        let alloc = self.attach();
        for size in [100, 40 * KIB, 300 * KIB, 6 * MIB] {
            allocate(&alloc, CTX, size);
        }
        std::mem::forget(alloc);
    }

    /// A process with four blocks. `more` runs in it afterwards, then `told` is written to.
    fn victim(&self, more: impl FnOnce()) -> Victim {
        let (mut here, mut there) = UnixStream::pair().unwrap();
        let victim = Victim::fork(|| {
            self.live();
            more();
            there.write_all(b"!").unwrap();
        });
        here.read_exact(&mut [0]).unwrap();
        victim
    }

    fn blocks(&self) -> usize {
        self.alloc.verify().unwrap().blocks_in_use
    }

    /// Somebody died, with all its blocks.
    #[track_caller]
    fn assert_dead(&self) {
        let start = Instant::now();
        assert_eq!(self.alloc.reap(), 1);
        assert!(start.elapsed() < LONG);
        assert_eq!(self.blocks(), 0);
        assert_eq!(self.alloc.currently_allocated_size(), 0);
    }

    #[track_caller]
    fn assert_alive(&self, blocks: usize) {
        assert_eq!(self.alloc.reap(), 0);
        assert_eq!(self.blocks(), blocks);
    }
}

/// Runs `inside` as the first process of a pid namespace of its own; false where that is not to be
/// had. It gets what `inside` answers, a byte at a time, by the stream.
fn in_namespace(inside: impl FnOnce(&mut UnixStream)) -> Option<(Victim, UnixStream)> {
    in_namespace_of(libc::CLONE_NEWPID, || (), inside)
}

/// The same for any kind of namespace, which `prepare` is called to make ready.
fn in_namespace_of(
    kind: libc::c_int,
    prepare: impl FnOnce(),
    inside: impl FnOnce(&mut UnixStream),
) -> Option<(Victim, UnixStream)> {
    let (mut here, there) = UnixStream::pair().unwrap();
    let outer = Victim::fork(|| {
        let mut there = there;
        // SAFETY: no memory is passed.
        let own = unsafe { libc::unshare(kind) } == 0
            // SAFETY: as above.
            || unsafe { libc::unshare(libc::CLONE_NEWUSER | kind) } == 0;
        there.write_all(&[own as u8]).unwrap();
        if own {
            prepare();
            std::mem::forget(Victim::fork(|| inside(&mut there)));
        }
    });
    let mut own = [0];
    here.read_exact(&mut own).unwrap();
    if own == [0] {
        eprintln!("no such namespace to be had here: not tested");
        return None;
    }
    Some((outer, here))
}

fn byte(stream: &mut UnixStream) -> u8 {
    let mut byte = [0];
    stream.read_exact(&mut byte).unwrap();
    byte[0]
}

/// Longer than its parent, but not for ever.
fn sleep_on() -> ! {
    // SAFETY: no preconditions.
    unsafe {
        libc::alarm(1000);
        libc::signal(libc::SIGALRM, libc::SIG_DFL);
        loop {
            libc::pause();
        }
    }
}

fn fork_and_sleep() -> libc::pid_t {
    // SAFETY: the child sleeps until it is killed.
    match unsafe { libc::fork() } {
        0 => sleep_on(),
        pid => pid,
    }
}

/// A fork that no hook of the C library sees.
fn raw_fork_and_sleep() -> libc::pid_t {
    let flags = libc::SIGCHLD as libc::c_long;
    // SAFETY: without memory of its own the child continues on a copy of this stack.
    match unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) } {
        0 => sleep_on(),
        pid => pid as libc::pid_t,
    }
}

/// The process table is the same, but says when everybody started by another clock.
#[test]
fn the_other_clock_of_a_time_namespace_kills_nobody() {
    const CLONE_NEWTIME: libc::c_int = 0x80;
    let _turn = turn();
    let scene = Scene::new();
    let offsets = || std::fs::write("/proc/self/timens_offsets", "boottime 100000 0\n").unwrap();
    let inside = |stream: &mut UnixStream| {
        scene.live();
        let alloc = scene.attach();
        stream.write_all(&[alloc.reap() as u8]).unwrap();
        std::mem::forget(alloc);
        sleep_on();
    };
    let Some((_outer, mut stream)) = in_namespace_of(CLONE_NEWTIME, offsets, inside) else {
        return;
    };
    // It sees this process live, and this one it.
    assert_eq!(byte(&mut stream), 0);
    scene.assert_alive(4);
}

#[test]
fn a_living_process_is_not_dead() {
    let _turn = turn();
    let scene = Scene::new();
    let victim = scene.victim(|| ());
    scene.assert_alive(4);
    // Neither is one that is stopped.
    // SAFETY: our child.
    unsafe { libc::kill(victim.pid() as i32, libc::SIGSTOP) };
    std::thread::sleep(Duration::from_millis(10));
    scene.assert_alive(4);
}

#[test]
fn a_process_that_left_is_not_dead() {
    let _turn = turn();
    let scene = Scene::new();
    let mut left = Vec::new();
    for _ in 0..3 {
        left.push(scene.victim(|| drop(scene.attach())));
        let other = scene.attach();
        allocate(&other, CTX, 500);
        drop(other);
    }
    // Three blocks that were left behind, four of each process.
    scene.assert_alive(15);
}

#[test]
fn a_zombie_is_dead() {
    let _turn = turn();
    let scene = Scene::new();
    let victim = scene.victim(|| ());
    victim.kill();
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", victim.pid())).unwrap();
    assert!(stat.contains(") Z "), "{stat}");
    scene.assert_dead();
}

/// The first thread has ended, others run on: `/proc` calls that a zombie, too.
#[test]
fn a_process_without_its_first_thread_is_not_dead() {
    extern "C" fn sleep(_: *mut libc::c_void) -> *mut libc::c_void {
        loop {
            // SAFETY: no preconditions.
            unsafe { libc::pause() };
        }
    }
    let _turn = turn();
    let scene = Scene::new();
    let victim = Victim::fork(|| {
        scene.live();
        let mut thread = 0;
        // SAFETY: `thread` is a place for the result, and the function never returns. Then only
        // this thread ends.
        unsafe {
            libc::pthread_create(&mut thread, core::ptr::null(), sleep, core::ptr::null_mut());
            libc::syscall(libc::SYS_exit, 0);
        }
    });
    let path = format!("/proc/{}/stat", victim.pid());
    while !std::fs::read_to_string(&path).unwrap().contains(") Z ") {
        std::thread::yield_now();
    }
    scene.assert_alive(4);
    victim.kill();
    scene.assert_dead();
}

#[test]
fn a_reused_pid_is_dead() {
    let _turn = turn();
    // Where the machine is busy somebody else may get the pid, and keep it.
    for _ in 0..20 {
        let scene = Scene::new();
        let victim = scene.victim(|| ());
        let pid = victim.pid();
        // Start times count hundredths of seconds.
        std::thread::sleep(Duration::from_millis(30));
        drop(victim);
        for _ in 0..10 {
            if std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).is_err() {
                eprintln!("pids cannot be chosen here: not tested");
                return;
            }
            let child = Victim::fork(|| ());
            if child.pid() == pid {
                scene.assert_dead();
                return;
            }
        }
        // It is dead whoever has its pid.
        scene.assert_dead();
    }
    eprintln!("somebody else always got the pid: not tested");
}

/// `execve`: the pid and the start time are the same, but all that the process had is gone.
#[test]
fn a_process_that_has_become_another_program_is_dead() {
    let _turn = turn();
    for holds_a_lock in [false, true] {
        let scene = Scene::new();
        let victim = scene.victim(|| ());
        drop(victim);
        scene.assert_dead();
        let (mut here, there) = UnixStream::pair().unwrap();
        let victim = Victim::fork(|| {
            scene.live();
            if holds_a_lock {
                // Beside a thread that takes and leaves locks all the time.
                let alloc = scene.attach();
                let busy = move || {
                    loop {
                        let block = allocate(&alloc, CTX, 6 * MIB);
                        // SAFETY: our own block.
                        unsafe { alloc.free_offset(CTX, hshm::OffsetPtr::new(block)) }.unwrap();
                    }
                };
                std::thread::spawn(busy);
                std::thread::sleep(Duration::from_millis(5));
            }
            let arguments = [c"sleep".as_ptr(), c"1000".as_ptr(), std::ptr::null()];
            // SAFETY: C strings, and a null at the end.
            unsafe { libc::execvp(arguments[0], arguments.as_ptr()) };
            panic!("{}", std::io::Error::last_os_error());
        });
        drop(there);
        // Closed by the new program's beginning.
        assert_eq!(here.read(&mut [0]).unwrap(), 0);
        let start = Instant::now();
        let mut dead = 0;
        while dead < 1 + usize::from(holds_a_lock) {
            assert!(start.elapsed() < LONG);
            dead += scene.alloc.reap();
        }
        assert_eq!((scene.blocks(), scene.alloc.currently_allocated_size()), (0, 0));
        // It lives, as somebody else.
        // SAFETY: signal 0 only asks.
        assert_eq!(unsafe { libc::kill(victim.pid() as i32, 0) }, 0);
        allocate(&scene.alloc, CTX, 6 * MIB);
    }
}

/// The same program again, at the same addresses: nobody else can tell, but the process itself knows what
/// it was before.
#[test]
fn a_process_that_has_executed_itself_is_dead() {
    const TEST: &str = "detect::a_process_that_has_executed_itself_is_dead";
    const BLOCK: usize = 6 * MIB;
    let options = RegionOptions::new().capacity(64 * MIB);
    // As long as the other, so that the stack begins at the same place, too.
    let again = |name: &str, life: u32| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", TEST, "--nocapture", "--test-threads=1"]);
        command.env("HSHM_TEST_ROLE", format!("{TEST}={life} {name}"));
        command
    };
    if let Some(role) = role(TEST) {
        let (life, name) = role.split_once(' ').unwrap();
        let alloc = SharedHeap::new(name).open(&options).unwrap();
        let life: u32 = life.parse().unwrap();
        // Itself, as it was before, twice.
        assert_eq!((life, alloc.reap()), (life, 2 * usize::from(life > 1)));
        assert_eq!(alloc.verify().unwrap().blocks_in_use, 0);
        allocate(&alloc, CTX, BLOCK);
        let other = SharedHeap::new(name).open(&options).unwrap();
        assert_eq!((alloc.reap(), other.reap()), (0, 0));
        std::mem::forget((alloc, other));
        if life < 4 {
            panic!("{}", again(name, life + 1).exec());
        }
        return;
    }
    let _turn = turn();
    let name = unique("itself");
    let alloc = SharedHeap::new(&name).create(&options).unwrap();
    let mut command = again(&name, 1);
    // SAFETY: a system call between fork and exec. Where it is refused, addresses are random.
    unsafe {
        command.pre_exec(|| {
            libc::personality(libc::ADDR_NO_RANDOMIZE as libc::c_ulong);
            Ok(())
        })
    };
    let output = command.output().unwrap();
    SharedHeap::new(&name).destroy().unwrap();
    let text =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success() && text[0].contains("1 passed"), "{text:?}");
    assert_eq!(alloc.reap(), 2);
    assert_eq!(alloc.verify().unwrap().blocks_in_use, 0);
}

/// Daemons close every descriptor that they do not know, and with them the lock that says that they live.
#[test]
fn a_process_that_has_closed_everything_is_not_dead() {
    let _turn = turn();
    let scene = Scene::new();
    let (mut here, there) = UnixStream::pair().unwrap();
    let victim = Victim::fork(|| {
        scene.live();
        // SAFETY: nothing of the harness is used any more in this child but the stream.
        unsafe {
            let own = std::os::fd::AsRawFd::as_raw_fd(&there);
            assert_eq!(libc::dup2(own, 0), 0);
            libc::syscall(libc::SYS_close_range, 1, u32::MAX, 0);
            libc::write(0, [1u8].as_ptr().cast(), 1);
        }
        std::mem::forget(there);
    });
    assert_eq!(byte(&mut here), 1);
    scene.assert_alive(4);
    victim.kill();
    scene.assert_dead();
}

#[test]
fn a_forked_child_does_not_keep_its_parent_alive() {
    let _turn = turn();
    for fork in [fork_and_sleep, raw_fork_and_sleep] {
        let scene = Scene::new();
        let (mut here, mut there) = UnixStream::pair().unwrap();
        let victim = scene.victim(|| there.write_all(&fork().to_ne_bytes()).unwrap());
        let mut child = [0; 4];
        here.read_exact(&mut child).unwrap();
        scene.assert_alive(4);
        victim.kill();
        // The child has all of the parent's descriptors, and lives.
        let child = i32::from_ne_bytes(child);
        // SAFETY: signal 0 only asks.
        assert_eq!(unsafe { libc::kill(child, 0) }, 0);
        scene.assert_dead();
        // SAFETY: the child of our child.
        unsafe { libc::kill(child, libc::SIGKILL) };
    }
}

#[test]
fn across_pid_namespaces() {
    let _turn = turn();
    let scene = Scene::new();
    // The process inside, seen from here.
    let Some((inner, mut answers)) = in_namespace(|told| {
        scene.live();
        told.write_all(&[std::process::id() as u8]).unwrap();
        // SAFETY: no preconditions. The first of a namespace is not killed by what it did not ask
        // for; this way it ends when it is told to.
        let _ = told.read(&mut [0]);
        // SAFETY: ends the process.
        unsafe { libc::_exit(0) };
    }) else {
        return;
    };
    assert_eq!(byte(&mut answers), 1, "not the first of its namespace");
    scene.assert_alive(4);
    answers.write_all(b"!").unwrap();
    let mut rest = Vec::new();
    answers.read_to_end(&mut rest).ok();
    // The stream ends before the process has: what it has open goes one by one.
    let start = Instant::now();
    while scene.alloc.reap() == 0 {
        assert!(start.elapsed() < LONG);
        std::thread::yield_now();
    }
    assert_eq!((scene.blocks(), scene.alloc.currently_allocated_size()), (0, 0));
    drop(inner);

    // A process here, seen from inside.
    let outer = scene.victim(|| ());
    let (inner, mut answers) = in_namespace(|told| {
        let alloc = scene.attach();
        loop {
            let _ = told.read(&mut [0]);
            told.write_all(&[alloc.reap() as u8]).unwrap();
        }
    })
    .unwrap();
    answers.write_all(b"?").unwrap();
    assert_eq!(byte(&mut answers), 0, "a living process outside was taken for dead");
    outer.kill();
    answers.write_all(b"?").unwrap();
    assert_eq!(byte(&mut answers), 1);
    assert_eq!(scene.blocks(), 0);
    drop(inner);
}

/// Whoever needs memory finds the dead by itself.
#[test]
fn who_needs_memory_gets_what_the_dead_had() {
    let _turn = turn();
    let scene = Scene::new();
    let victim = scene.victim(|| {
        let alloc = scene.attach();
        while alloc.allocate_offset(CTX, layout(300 * KIB)).is_ok() {}
        std::mem::forget(alloc);
    });
    let request = layout(20 * MIB);
    assert!(scene.alloc.allocate_offset(CTX, request).is_err());
    victim.kill();
    let start = Instant::now();
    let block = scene.alloc.allocate_offset(CTX, request).unwrap();
    assert!(start.elapsed() < LONG, "{:?}", start.elapsed());
    // SAFETY: our own block.
    unsafe { scene.alloc.free_offset(CTX, block) }.unwrap();
    scene.alloc.trim();
    assert_eq!(scene.blocks(), 0);
}

/// More processes have come and gone without a word than there are slots.
#[test]
fn the_dead_free_their_slots() {
    let _turn = turn();
    let region = MemfdBackend::create("", &RegionOptions::new().capacity(64 * MIB)).unwrap();
    let alloc = ThreadLocalAllocator::shm_init_with(region.clone(), 4).unwrap();
    let scene = Scene { region, alloc };
    for _ in 0..12 {
        drop(scene.victim(|| ()));
    }
    scene.alloc.reap();
    assert_eq!(scene.blocks(), 0);
}

fn names(directory: &str) -> BTreeSet<String> {
    std::fs::read_dir(directory)
        .map(|entries| entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()))
        .map(Iterator::collect)
        .unwrap_or_default()
}

/// This thread, and what it forks, gets folders of its own, where it may: others use the same ones.
fn own_folders() {
    let temporary = CString::new(std::env::temp_dir().to_str().unwrap()).unwrap();
    let (none, kind) = (std::ptr::null(), c"tmpfs".as_ptr());
    // SAFETY: C strings; the thread gets its own view of the file systems, and changes only that.
    unsafe {
        let private = libc::MS_REC | libc::MS_PRIVATE;
        if libc::unshare(libc::CLONE_NEWNS) == 0
            && libc::mount(none, c"/".as_ptr(), none, private, none.cast()) == 0
        {
            for folder in [c"/dev/shm", &temporary] {
                libc::mount(kind, folder.as_ptr(), kind, libc::MS_NOSUID, none.cast());
            }
        }
    }
}

/// What is not ours does not count.
fn ours() -> BTreeSet<String> {
    let temporary = std::env::temp_dir();
    let all = names("/dev/shm").into_iter().chain(names(temporary.to_str().unwrap()));
    all.filter(|name| name.contains("hshm") && !name.contains("hshm-t")).collect()
}

fn debris(kills: u32) {
    let _turn = turn();
    own_folders();
    let scene = Scene::new();
    let before = ours();
    for _ in 0..kills {
        let victim = Victim::fork(|| {
            scene.live();
            // And a heap of its own.
            Scene::new().live();
        });
        std::thread::sleep(Duration::from_micros(u64::from(victim.pid()) * 37 % 1500));
        victim.kill();
    }
    scene.alloc.reap();
    assert_eq!(scene.blocks(), 0);
    assert_eq!(ours(), before);
    println!("{kills} kills, and nothing new in /dev/shm and the temporary folder");
}

#[test]
fn no_debris() {
    debris(50);
}

#[test]
#[ignore = "long"]
fn no_debris_after_a_thousand_kills() {
    debris(1000);
}
