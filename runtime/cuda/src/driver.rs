//! The driver's functions, in the order in which a model needs them.

use crate::entry_at;
use cudarc::driver::{DriverError, result, sys};
use lapidary_runtime::RunError;
use lapidary_runtime::device::{Device, Launch};
use std::collections::HashMap;
use std::ffi::{CString, c_int, c_void};
use std::sync::{Mutex, PoisonError};

/// Most blocks of a launch.
const MOST_BLOCKS: u64 = (1 << 31) - 1;

/// Most bytes of workspace: launches whose blocks need more are cut.
const MOST_WORKSPACE: u64 = 256 << 20;

/// A GPU with a module on it.
pub struct Gpu {
    context: sys::CUcontext,
    module: sys::CUmodule,
    text: String,
    state: Mutex<State>,
}

/// What launches share.
#[derive(Default)]
struct State {
    kernels: HashMap<u64, Kernel>,
    /// Memory of the GPU, and its length.
    workspace: (sys::CUdeviceptr, u64),
}

/// A kernel that was launched before.
#[derive(Clone, Copy)]
struct Kernel {
    function: sys::CUfunction,
    threads: u32,
    workspace_bytes: u64,
}

// SAFETY: the driver's handles may be used by any thread, one at a time for each `state`; every use makes the context current.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

fn failed(what: &str) -> impl Fn(DriverError) -> RunError + '_ {
    move |error| RunError::System(format!("the GPU's driver cannot {what}: {error:?}"))
}

impl Gpu {
    pub fn open(number: u32, text: &str) -> Result<Gpu, RunError> {
        let none = |why: String| RunError::System(why);
        // SAFETY: only loads and unloads the library.
        if !unsafe { sys::is_culib_present() } {
            return Err(none(
                "there is no NVIDIA GPU here: its driver (`libcuda`) is not installed".to_owned(),
            ));
        }
        result::init().map_err(failed("start"))?;
        let count = result::device::get_count().map_err(failed("count GPUs"))?;
        let device = match c_int::try_from(number) {
            Ok(n) if n < count => result::device::get(n).map_err(failed("open the GPU"))?,
            _ => return Err(none(format!("there is no GPU {number}: there are {count}"))),
        };
        let shared = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS;
        // SAFETY: the device is the driver's.
        let shared = unsafe { result::device::get_attribute(device, shared) };
        if shared.map_err(failed("describe the GPU"))? == 0 {
            return Err(none(format!(
                "GPU {number} cannot reach the host's memory: that needs Linux 6.1 and the open kernel driver"
            )));
        }
        let image =
            CString::new(text).map_err(|_| none("a module for a GPU is text".to_owned()))?;
        // SAFETY: the device is the driver's; the image is text with a zero at its end, and lives until it is loaded.
        let (context, module) = unsafe {
            let context = result::primary_ctx::retain(device).map_err(failed("make a context"))?;
            result::ctx::set_current(context).map_err(failed("use its context"))?;
            let module = result::module::load_data(image.as_ptr().cast::<c_void>());
            (
                context,
                module.map_err(failed("compile the kernels for this GPU"))?,
            )
        };
        Ok(Gpu {
            context,
            module,
            text: text.to_owned(),
            state: Mutex::default(),
        })
    }

    fn kernel(&self, state: &mut State, offset: u64) -> Result<Kernel, RunError> {
        if let Some(kernel) = state.kernels.get(&offset) {
            return Ok(*kernel);
        }
        let missing = || RunError::Program(format!("no kernel begins at {offset}"));
        let entry = entry_at(&self.text, offset).ok_or_else(missing)?;
        let name = CString::new(entry.name).map_err(|_| missing())?;
        // SAFETY: the module is loaded as long as `self` lives.
        let function = unsafe { result::module::get_function(self.module, name) };
        let kernel = Kernel {
            function: function.map_err(failed("find a kernel"))?,
            threads: entry.threads,
            workspace_bytes: entry.workspace_bytes,
        };
        state.kernels.insert(offset, kernel);
        Ok(kernel)
    }

    /// Memory of the GPU that is at least so long.
    fn workspace(state: &mut State, bytes: u64) -> Result<u64, RunError> {
        let (at, len) = state.workspace;
        if bytes > len {
            // SAFETY: nothing runs that uses the old one, for every launch is waited for.
            unsafe {
                if len > 0 {
                    result::free_sync(at).map_err(failed("free memory"))?;
                    state.workspace = (0, 0);
                }
                let new = result::malloc_sync(bytes as usize).map_err(failed("allocate"))?;
                state.workspace = (new, bytes);
            }
        }
        Ok(state.workspace.0)
    }
}

impl Device for Gpu {
    fn launch(&self, launch: &Launch) -> Result<(), RunError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the context is retained as long as `self` lives.
        unsafe { result::ctx::set_current(self.context) }.map_err(failed("use its context"))?;
        let kernel = self.kernel(&mut state, launch.code_offset)?;
        let room = MOST_WORKSPACE.checked_div(kernel.workspace_bytes);
        let at_once = room.unwrap_or(MOST_BLOCKS).clamp(1, MOST_BLOCKS);
        let blocks = launch.blocks.min(at_once);
        let mut workspace = Gpu::workspace(&mut state, kernel.workspace_bytes * blocks)?;
        let mut args = launch.args.to_vec();
        let mut first = 0;
        while first < launch.blocks {
            let now = at_once.min(launch.blocks - first);
            let mut number = u32::try_from(first)
                .map_err(|_| RunError::Program("a grid of more than 2^32 blocks".to_owned()))?;
            let mut params: Vec<*mut c_void> = args
                .iter_mut()
                .map(|a| std::ptr::from_mut(a).cast())
                .collect();
            params.push(std::ptr::from_mut(&mut workspace).cast());
            params.push(std::ptr::from_mut(&mut number).cast());
            // SAFETY: the parameters are those of the entry, as the compiler wrote both; buffers are as large as the program
            // says, and stay until the launch has been waited for.
            unsafe {
                result::launch_kernel(
                    kernel.function,
                    (now as u32, 1, 1),
                    (kernel.threads, 1, 1),
                    0,
                    std::ptr::null_mut(),
                    &mut params,
                )
            }
            .map_err(failed("launch a kernel"))?;
            result::ctx::synchronize().map_err(failed("run a kernel"))?;
            first += now;
        }
        Ok(())
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: nothing of this module runs any more. What fails here has no consequence.
        unsafe {
            let _ = result::ctx::set_current(self.context);
            if state.workspace.1 > 0 {
                let _ = result::free_sync(state.workspace.0);
            }
            let _ = result::module::unload(self.module);
        }
    }
}
