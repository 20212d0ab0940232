//! When outputs cannot be written whole there is an error, and nothing of them is left.
#![cfg(unix)]

use lapidary_abi::ElemType;
use lapidary_abi::program::{Port, ValueType};
use lapidary_runtime::io::folder::{Kind, write_outputs};
use lapidary_runtime::{RunError, Tensor};

/// Files of this process may have at most this many bytes.
fn limit_files(bytes: libc::rlim_t) {
    // SAFETY: plain calls; the signal that comes with the error is ignored.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        let mut limit = std::mem::zeroed();
        libc::getrlimit(libc::RLIMIT_FSIZE, &mut limit);
        limit.rlim_cur = bytes.min(limit.rlim_max);
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
    }
}

#[test]
fn a_full_disk_leaves_nothing() {
    let folder = std::env::temp_dir().join(format!("lapidary-full-{}", std::process::id()));
    let port = |name: &str| Port {
        name: name.into(),
        ty: ValueType::Tensor {
            elem: ElemType::F32,
            dims: None,
        },
        value: 0,
    };
    let ports = [port("small"), port("large")];
    let tensor = |n| Tensor::zeros(ElemType::F32, vec![n]).expect("fits").into();
    let values = [tensor(1), tensor(1 << 16)];
    for kind in [Kind::Npy, Kind::Npz, Kind::Pb] {
        // Room for the small output, and for half of the large one.
        limit_files(1 << 17);
        let result = write_outputs(&folder, &ports, &values, kind);
        limit_files(libc::RLIM_INFINITY);
        assert!(matches!(result, Err(RunError::System(_))), "{result:?}");
        let left: Vec<_> = std::fs::read_dir(&folder).expect("was made").collect();
        assert!(left.is_empty(), "{left:?}");
        write_outputs(&folder, &ports, &values, kind).expect("there is room");
        assert!(std::fs::read_dir(&folder).expect("was made").count() > 0);
        std::fs::remove_dir_all(&folder).expect("was made");
    }
}
