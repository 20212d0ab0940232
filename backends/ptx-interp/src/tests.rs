//! Every report has a program that provokes it, beside the nearest one that is right.

use crate::{Launch, Module, Segment, Wrong};

/// Address of the one buffer.
const BUFFER: u64 = 1 << 20;

/// Runs a body of `threads` threads on a buffer whose address is in `%rd1`; `%r1` is the thread's number.
fn run(threads: u32, shared: u32, body: &str, bytes: &mut [u8]) -> Result<(), Wrong> {
    let shared = match shared {
        0 => String::new(),
        n => format!(".shared .align 16 .b8 s[{n}];"),
    };
    let text = format!(
        ".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry k(\n.param .u64 a)\n.maxntid {threads}, 1, 1\n{{\n\
         .reg .pred %p<9>;\n.reg .b32 %r<40>;\n.reg .b64 %rd<9>;\n.reg .f32 %f<9>;\n{shared}\n\
         mov.u32 %r1, %tid.x;\nld.param.u64 %rd1, [a];\ncvta.to.global.u64 %rd1, %rd1;\n{body}\nret;\n}}\n"
    );
    let module = Module::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let launch = Launch {
        entry: &module.entries["k"],
        params: &[BUFFER],
        blocks: 1,
    };
    let mut segments = [Segment {
        address: BUFFER,
        bytes,
        read_only: false,
    }];
    launch.run(&mut segments).map(|_| ()).map_err(|f| f.wrong)
}

fn fails(threads: u32, shared: u32, body: &str) -> Wrong {
    run(threads, shared, body, &mut [0; 4096]).unwrap_err()
}

fn words(bytes: &[u8]) -> Vec<u32> {
    let word = |c: &[u8]| u32::from_le_bytes([c[0], c[1], c[2], c[3]]);
    bytes.chunks(4).map(word).collect()
}

/// Address of the thread's own word of the buffer in `%rd2`.
const OWN: &str = "mul.wide.u32 %rd2, %r1, 4;\nadd.s64 %rd2, %rd1, %rd2;";
/// Of its own word of shared memory in `%r2`, of its neighbour's in `%r3` (of 64 threads).
const SHARED: &str = "mov.u32 %r9, s;\nmad.lo.s32 %r2, %r1, 4, %r9;\nadd.s32 %r3, %r1, 1;\nand.b32 %r3, %r3, 63;\n\
                      mad.lo.s32 %r3, %r3, 4, %r9;";

#[test]
fn memory_has_an_end() {
    assert_eq!(
        fails(32, 0, "ld.global.b32 %r2, [%rd1+4096];"),
        Wrong::OutOfBounds
    );
    assert_eq!(
        fails(32, 8, "mov.u32 %r2, s;\nld.shared.b32 %r3, [%r2+8];"),
        Wrong::OutOfBounds
    );
    assert_eq!(
        fails(32, 0, "ld.global.b32 %r2, [%rd1+2];"),
        Wrong::Misaligned
    );
    let mut bytes = [0; 128];
    run(
        32,
        0,
        &format!("{OWN}\nst.global.b32 [%rd2], %r1;"),
        &mut bytes,
    )
    .unwrap();
    assert_eq!(words(&bytes), (0..32).collect::<Vec<u32>>());
}

#[test]
fn what_may_only_be_read_is_not_written() {
    let text = ".visible .entry k(\n.param .u64 a)\n.maxntid 32, 1, 1\n{\n.reg .b64 %rd<2>;\nld.param.u64 %rd1, [a];\n\
                st.global.b32 [%rd1], 1;\nret;\n}\n";
    let module = Module::parse(text).unwrap();
    let (entry, params) = (&module.entries["k"], &[BUFFER][..]);
    let mut bytes = [0; 4];
    let mut launch = |params| {
        let mut segments = [Segment {
            address: BUFFER,
            bytes: &mut bytes,
            read_only: true,
        }];
        let launch = Launch {
            entry,
            params,
            blocks: 1,
        };
        launch.run(&mut segments).unwrap_err().wrong
    };
    assert_eq!(launch(params), Wrong::ReadOnly);
    assert_eq!(launch(&[]), Wrong::Launch);
}

#[test]
fn threads_come_to_barriers_together() {
    let half = "setp.lt.u32 %p1, %r1, 32;";
    // Half of the threads go by, half wait; or each half at a barrier of its own.
    assert_eq!(
        fails(64, 0, &format!("{half}\n@%p1 bar.sync 0;")),
        Wrong::Divergence
    );
    let two =
        format!("{half}\n@%p1 bra a;\nbar.sync 0;\nbra b;\na:\nbar.sync 0;\nb:\nmov.u32 %r2, 0;");
    assert_eq!(fails(64, 0, &two), Wrong::Divergence);
    run(
        64,
        0,
        &format!("{half}\n@%p1 mov.u32 %r2, 1;\nbar.sync 0;"),
        &mut [],
    )
    .unwrap();
}

#[test]
fn lanes_come_to_shuffles_together() {
    let shuffle = "shfl.sync.idx.b32 %r2, %r1, 3, 31, 0xffffffff;";
    let odd = "and.b32 %r3, %r1, 1;\nsetp.eq.u32 %p1, %r3, 1;";
    assert_eq!(
        fails(
            32,
            0,
            &format!("{odd}\n@%p1 bra a;\n{shuffle}\na:\nmov.u32 %r4, 0;")
        ),
        Wrong::Divergence
    );
    let mut bytes = [0; 128];
    run(
        32,
        0,
        &format!("{OWN}\n{shuffle}\nst.global.b32 [%rd2], %r2;"),
        &mut bytes,
    )
    .unwrap();
    assert_eq!(words(&bytes), [3; 32]);
    let butterfly = "shfl.sync.bfly.b32 %r2, %r1, 5, 31, 0xffffffff;";
    run(
        32,
        0,
        &format!("{OWN}\n{butterfly}\nst.global.b32 [%rd2], %r2;"),
        &mut bytes,
    )
    .unwrap();
    assert_eq!(words(&bytes), (0..32).map(|i| i ^ 5).collect::<Vec<u32>>());
}

#[test]
fn a_barrier_is_between_threads_that_share() {
    let (write, read) = ("st.shared.b32 [%r2], %r1;", "ld.shared.b32 %r4, [%r3];");
    assert_eq!(
        fails(64, 256, &format!("{SHARED}\n{write}\n{read}")),
        Wrong::Race
    );
    assert_eq!(
        fails(64, 256, &format!("{SHARED}\n{read}\n{write}")),
        Wrong::Race
    );
    assert_eq!(
        fails(64, 256, "mov.u32 %r2, s;\nst.shared.b32 [%r2], %r1;"),
        Wrong::Race
    );
    let own = "ld.shared.b32 %r4, [%r2];";
    let right = format!("{SHARED}\n{write}\n{own}\nbar.sync 0;\n{read}\nbar.sync 0;\n{write}");
    run(64, 256, &right, &mut []).unwrap();
    let global = format!("{OWN}\nst.global.b32 [%rd2], %r1;\nld.global.b32 %r4, [%rd1];");
    assert_eq!(fails(64, 0, &global), Wrong::Race);
}

#[test]
fn copies_are_waited_for() {
    let copy = format!(
        "{SHARED}\n{OWN}\ncp.async.ca.shared.global [%r2], [%rd2], 4;\ncp.async.commit_group;"
    );
    let wait = "cp.async.wait_group 0;";
    let own = "ld.shared.b32 %r4, [%r2];\nst.global.b32 [%rd2], %r4;";
    assert_eq!(
        fails(64, 256, &format!("{copy}\n{own}")),
        Wrong::PendingCopy
    );
    assert_eq!(
        fails(64, 256, &format!("{copy}\ncp.async.wait_group 1;\n{own}")),
        Wrong::PendingCopy
    );
    assert_eq!(fails(64, 256, &copy), Wrong::PendingCopy);
    // Waited for, but the neighbour's copy is no barrier's business.
    assert_eq!(
        fails(
            64,
            256,
            &format!("{copy}\n{wait}\nld.shared.b32 %r4, [%r3];")
        ),
        Wrong::Race
    );
    let mut bytes: Vec<u8> = (0..64u32).flat_map(|i| (7 * i).to_le_bytes()).collect();
    let other = "ld.shared.b32 %r4, [%r3];\nbar.sync 0;\nst.global.b32 [%rd2], %r4;";
    run(
        64,
        256,
        &format!("{copy}\n{wait}\nbar.sync 0;\n{other}"),
        &mut bytes,
    )
    .unwrap();
    assert_eq!(
        words(&bytes),
        (0..64).map(|i| 7 * ((i + 1) % 64)).collect::<Vec<u32>>()
    );
    // What is beyond the count is zero, and is not read.
    let none = format!(
        "{SHARED}\ncp.async.ca.shared.global [%r2], [%rd1+8192], 4, 0;\ncp.async.commit_group;\n{wait}\n{OWN}\n{own}"
    );
    run(64, 256, &none, &mut bytes).unwrap();
    assert_eq!(words(&bytes), [0; 64]);
}

#[test]
fn programs_end() {
    assert_eq!(fails(32, 0, "a:\nbra a;"), Wrong::Endless);
}

/// `d = a * b` by one warp: `a` through `ldmatrix`, `b` through `ldmatrix.trans`, as the backend does.
#[test]
fn matrices_are_multiplied() {
    let (m, n, k) = (16, 8, 16);
    let a = |i: usize, j: usize| ((i * 7 + j * 3) % 11) as f32 - 5.0;
    let b = |i: usize, j: usize| ((i * 5 + j * 2) % 13) as f32 - 6.0;
    let mut bytes = vec![];
    let half = |x: f32| half::f16::from_f32(x).to_le_bytes();
    (0..m * k).for_each(|e| bytes.extend(half(a(e / k, e % k))));
    (0..k * n).for_each(|e| bytes.extend(half(b(e / n, e % n))));
    bytes.extend(vec![0; 4 * m * n]);
    let body = "
        mul.wide.u32 %rd2, %r1, 24;
        add.s64 %rd2, %rd1, %rd2;
        mov.u32 %r9, s;
        mad.lo.s32 %r2, %r1, 24, %r9;
        ld.global.b64 %rd3, [%rd2];
        st.shared.b64 [%r2], %rd3;
        ld.global.b64 %rd3, [%rd2+8];
        st.shared.b64 [%r2+8], %rd3;
        ld.global.b64 %rd3, [%rd2+16];
        st.shared.b64 [%r2+16], %rd3;
        bar.sync 0;
        and.b32 %r3, %r1, 15;
        shr.u32 %r4, %r1, 4;
        mad.lo.s32 %r5, %r3, 32, %r9;
        mad.lo.s32 %r5, %r4, 16, %r5;
        ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r10, %r11, %r12, %r13}, [%r5];
        mad.lo.s32 %r6, %r3, 16, %r9;
        ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%r14, %r15}, [%r6+512];
        mov.f32 %f1, 0f3F800000;
        mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f2, %f3, %f4, %f5}, {%r10, %r11, %r12, %r13}, {%r14, %r15}, {%f1, %f1, %f1, %f1};
        shr.u32 %r20, %r1, 2;
        and.b32 %r21, %r1, 3;
        mul.lo.s32 %r22, %r20, 32;
        mad.lo.s32 %r22, %r21, 8, %r22;
        cvt.u64.u32 %rd4, %r22;
        add.s64 %rd4, %rd1, %rd4;
        st.global.v2.f32 [%rd4+768], {%f2, %f3};
        st.global.v2.f32 [%rd4+1024], {%f4, %f5};";
    run(32, 768, body, &mut bytes).unwrap();
    for (e, word) in words(&bytes[768..]).into_iter().enumerate() {
        let (i, j) = (e / n, e % n);
        let want = 1.0 + (0..k).map(|x| a(i, x) * b(x, j)).sum::<f32>();
        assert_eq!(f32::from_bits(word), want, "({i}, {j})");
    }
}

/// A lane's words: four of `a`, four of `b`, its places and a word that is not read.
const SPARSE: &str = "
    mul.wide.u32 %rd2, %r1, 40;
    add.s64 %rd2, %rd1, %rd2;
    ld.global.v2.b32 {%r2, %r3}, [%rd2];
    ld.global.v2.b32 {%r4, %r5}, [%rd2+8];
    ld.global.v2.b32 {%r6, %r7}, [%rd2+16];
    ld.global.v2.b32 {%r8, %r9}, [%rd2+24];
    ld.global.v2.b32 {%r10, %r11}, [%rd2+32];
    mov.f32 %f1, 0f3F800000;
    mma.sp.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 {%f2, %f3, %f4, %f5}, {%r2, %r3, %r4, %r5}, {%r6, %r7, %r8, %r9}, {%f1, %f1, %f1, %f1}, %r10, 0x0;
    mul.wide.u32 %rd2, %r1, 16;
    add.s64 %rd2, %rd1, %rd2;
    st.global.v2.f32 [%rd2+1280], {%f2, %f3};
    st.global.v2.f32 [%rd2+1288], {%f4, %f5};";

#[test]
fn sparse_matrices_are_multiplied() {
    const PAIRS: [[usize; 2]; 6] = [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]];
    let places = |row: usize, four: usize| PAIRS[(5 * row + 7 * four) % 6];
    let kept = |row: usize, i: usize| ((row * 7 + i * 3) % 11) as f32 - 5.0;
    let b = |k: usize, column: usize| ((k * 5 + column * 2) % 13) as f32 - 6.0;
    let pair = |x: [f32; 2]| {
        let [low, high] = x.map(|x| u32::from(half::f16::from_f32(x).to_bits()));
        high << 16 | low
    };
    for selector in 0..2 {
        let mut bytes = vec![];
        for lane in 0..32 {
            let (g, p) = (lane / 4, lane % 4);
            let mut lane = vec![];
            for (row, first) in [(g, 0), (g + 8, 0), (g, 8), (g + 8, 8)] {
                let i = first + 2 * p;
                lane.push(pair([kept(row, i), kept(row, i + 1)]));
            }
            for first in [0, 8, 16, 24] {
                let k = first + 2 * p;
                lane.push(pair([b(k, g), b(k + 1, g)]));
            }
            // Lanes that have no places hold what is none.
            let mut word = 0;
            for half in 0..if p / 2 == selector { 2 } else { 0 } {
                for four in 0..4 {
                    let [first, second] = places(g + 8 * half, 4 * (p % 2) + four);
                    word |= (first | second << 2) << (16 * half + 4 * four);
                }
            }
            lane.extend([word as u32, 0]);
            bytes.extend(lane.into_iter().flat_map(u32::to_le_bytes));
        }
        bytes.extend([0; 512]);
        let body = SPARSE.replace("0x0;", &format!("0x{selector};"));
        let ordered = body.replace("mma.sp.", "mma.sp::ordered_metadata.");
        let mut again = bytes.clone();
        run(32, 0, &ordered, &mut again).unwrap();
        run(32, 0, &body, &mut bytes).unwrap();
        assert_eq!(bytes, again);
        for (at, word) in words(&bytes[1280..]).into_iter().enumerate() {
            let (lane, r) = (at / 4, at % 4);
            let (row, column) = (lane / 4 + 8 * (r / 2), lane % 4 * 2 + r % 2);
            let of_four = |four: usize| {
                let [first, second] = places(row, four).map(|place| b(4 * four + place, column));
                kept(row, 2 * four) * first + kept(row, 2 * four + 1) * second
            };
            let want = 1.0 + (0..8).map(of_four).sum::<f32>();
            assert_eq!(f32::from_bits(word), want, "({row}, {column})");
        }
        // The other lanes' places are none.
        let other = SPARSE.replace("0x0;", &format!("0x{};", 1 - selector));
        let wrong = run(32, 0, &other, &mut bytes).unwrap_err();
        assert_eq!(wrong, Wrong::Metadata);
        // Neither are places that fall, in any group of any row.
        let at = 40 * (4 * 3 + 2 * selector + 1) + 32;
        bytes[at + 3] = 0b0001_1110;
        let wrong = run(32, 0, &body, &mut bytes).unwrap_err();
        assert_eq!(wrong, Wrong::Metadata);
    }
}

#[test]
fn texts_that_are_not_known_are_refused_with_their_line() {
    let refused = |text: &str| Module::parse(text).unwrap_err();
    assert_eq!(refused("\n.entry").line, 2);
    let head = ".visible .entry k()\n.maxntid 32, 1, 1\n{\n";
    assert!(
        refused(&format!("{head}frob.b32 %r1, %r2;\n}}\n"))
            .reason
            .contains("frob")
    );
    assert!(
        refused(&format!("{head}bra nowhere;\n}}\n"))
            .reason
            .contains("nowhere")
    );
    assert!(
        refused(&format!("{head}mov.u32 %r1, 0;\n}}\n"))
            .reason
            .contains("%r1")
    );
    assert!(
        refused(&format!("{head}ret;\n"))
            .reason
            .contains("does not end")
    );
    assert!(
        refused(".visible .entry k()\n{\n}\n")
            .reason
            .contains("threads")
    );
}
