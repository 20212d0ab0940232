"""Makes conformance cases of the com.microsoft operators in a folder, with the results of onnxruntime.

usage: python generate_contrib.py FOLDER; then run the conformance test with LAPIDARY_ONNX_TESTS=FOLDER.
The index has the form that generate.py writes. Needs onnx and onnxruntime.
"""
import json, os, sys
import numpy as np, onnxruntime as ort
from onnx import helper as H, numpy_helper as NH, TensorProto as T
rng=np.random.default_rng(0); root=sys.argv[1]; idx=[]
f=lambda *s: rng.standard_normal(s).astype(np.float32)
u8=lambda *s: rng.integers(0,256,s).astype(np.uint8)
i8=lambda *s: rng.integers(-128,128,s).astype(np.int8)
S=np.float32; 
def case(name,op,ins,nout,const=(),dom='com.microsoft',**attrs):
    names=[('' if a is None else f'i{k}') for k,a in enumerate(ins)]
    outs=[o if isinstance(o,str) else f'o{o}' for o in (range(nout) if isinstance(nout,int) else nout)]
    n=H.make_node(op,names,outs,domain=dom,**attrs)
    gi=[];init=[]
    for k,a in enumerate(ins):
        if a is None: continue
        if k in const: init.append(NH.from_array(np.asarray(a),f'i{k}'))
        else: gi.append(H.make_tensor_value_info(f'i{k}',H.np_dtype_to_tensor_dtype(np.asarray(a).dtype),np.asarray(a).shape))
    real=[o for o in outs if o]
    def model(og): 
        m=H.make_model(H.make_graph([n],'g',gi,og,init),opset_imports=[H.make_opsetid('',17),H.make_opsetid('com.microsoft',1)]); m.ir_version=8; return m
    try:
        feeds={f'i{k}':np.asarray(a) for k,a in enumerate(ins) if a is not None and k not in const}
        so=ort.SessionOptions(); so.log_severity_level=4; so.graph_optimization_level=ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        m=model([H.make_empty_tensor_value_info(o) for o in real])
        s=ort.InferenceSession(m.SerializeToString(),so,providers=['CPUExecutionProvider']); res=s.run(None,feeds)
    except Exception as e:
        print('ORT',name,str(e)[:160]); return
    m=model([H.make_tensor_value_info(o,H.np_dtype_to_tensor_dtype(r.dtype),r.shape) for o,r in zip(real,res)])
    d=f'{root}/node/{name}'; os.makedirs(d+'/test_data_set_0',exist_ok=True)
    open(d+'/model.onnx','wb').write(m.SerializeToString())
    for k,(nm,a) in enumerate(feeds.items()): open(f'{d}/test_data_set_0/input_{k}.pb','wb').write(NH.from_array(a,nm).SerializeToString())
    for k,(o,r) in enumerate(zip(real,res)): open(f'{d}/test_data_set_0/output_{k}.pb','wb').write(NH.from_array(r,o).SerializeToString())
    idx.append(dict(kind='node',name=name,dir=f'node/{name}',rtol=1e-3,atol=1e-4,ops=[op],expanded=False))
for tb in (0,1):
  for ta in (0,1):
    case(f'fmm_{ta}{tb}','FusedMatMul',[f(2,4,3) if ta else f(2,3,4), f(2,5,4) if tb else f(2,4,5)],1,transA=ta,transB=tb,alpha=0.5)
for a in (0,1):
  case(f'fmm_ba{a}','FusedMatMul',[f(3,2,6) if not a else f(6,2,3), f(2,6,5)],1,transBatchA=1,transA=a)
  case(f'fmm_bb{a}','FusedMatMul',[f(2,3,6), f(6,2,5) if not a else f(5,2,6)],1,transBatchB=1,transB=a)
case('skip','SkipLayerNormalization',[f(2,3,8),f(2,3,8),f(8),f(8),f(8)],['o0','','','o3'],epsilon=1e-5)
case('skips','SkipSimplifiedLayerNormalization',[f(2,3,8),f(2,3,8),f(8),f(8)],['o0','','','o3'],epsilon=1e-5)
case('skips2','SkipSimplifiedLayerNormalization',[f(2,3,8),f(2,3,8),f(8)],1,epsilon=1e-5)
case('sln','SimplifiedLayerNormalization',[f(2,3,8),f(8)],1,dom='',epsilon=1e-5)
ids=lambda n,*s: rng.integers(0,n,s).astype(np.int32)
case('embed','EmbedLayerNormalization',[ids(20,2,5),ids(2,2,5),f(20,8),f(10,8),f(2,8),f(8),f(8),np.array([[1,1,1,0,0],[1,1,1,1,1]],np.int32)],2,epsilon=1e-5)
case('biasgelu','BiasGelu',[f(2,3,8),f(8)],1); case('fastgelu','FastGelu',[f(2,8),f(8)],1); case('quickgelu','QuickGelu',[f(2,8)],1,alpha=1.5)
case('fconv','FusedConv',[f(1,2,6,6),f(3,2,3,3),f(3)],1,activation='Relu',pads=[1,1,1,1])
case('fconv2','FusedConv',[f(1,2,6,6),f(3,2,3,3),f(3),f(1,3,6,6)],1,activation='LeakyRelu',activation_params=[0.1],pads=[1,1,1,1])
z=lambda v,t=np.uint8: np.array(v,t)
for nm in ('Add','Mul'): case('ql'+nm,'QLinear'+nm,[u8(2,3,4),S(.02),z(120),u8(4),S(.03),z(130),S(.05),z(128)],1)
case('qlsig','QLinearSigmoid',[u8(2,9),S(.04),z(128),S(1/256),z(0)],1,const=(1,2,3,4))
case('qlleaky','QLinearLeakyRelu',[u8(2,9),S(.04),z(128),S(.03),z(90)],1,const=(1,2,3,4),alpha=.1)
case('qlap','QLinearAveragePool',[u8(1,2,6,6),S(.04),z(128),S(.03),z(120)],1,kernel_shape=[3,3],strides=[2,2],pads=[1,1,1,1])
case('qlapc','QLinearAveragePool',[u8(1,6,6,2),S(.04),z(128),S(.03),z(120)],1,kernel_shape=[3,3],channels_last=1,count_include_pad=1,pads=[1,1,1,1])
case('qlgap','QLinearGlobalAveragePool',[u8(1,2,6,6),S(.04),z(128),S(.03),z(120)],1)
case('qlcat','QLinearConcat',[S(.05),z(128),u8(2,3),S(.04),z(128),u8(2,2),S(.03),z(110)],1,axis=1)
case('qlsm','QLinearSoftmax',[u8(2,9),S(.04),z(128),S(1/256),z(0)],1,const=(1,2,3,4),axis=-1,opset=13)
case('dqmm','DynamicQuantizeMatMul',[f(3,8),i8(8,5),np.abs(f(5))*.01,i8(5),f(5)],1)
case('mitf','MatMulIntegerToFloat',[u8(3,8),u8(8,5),S(.02),np.abs(f(5))*.01,z(128),u8(5),f(5)],1)
case('qgemm','QGemm',[u8(3,8),S(.02),z(120),i8(5,8),S(.01),z(3,np.int8),rng.integers(-100,100,5).astype(np.int32),S(.05),z(128)],1,transB=1,alpha=1.0)
case('qgemmf','QGemm',[u8(3,8),S(.02),z(120),i8(8,5),S(.01),z(3,np.int8)],1,alpha=2.0)
for bits in (2,4,8):
  K,N,bs=40,6,16; nb=3; blob=bs*bits//8
  B=u8(N,nb,blob); sc=np.abs(f(N,nb))*.1; zp=u8(N,(nb*bits+7)//8)
  case(f'nb{bits}','MatMulNBits',[f(2,3,K),B,sc],1,const=(1,2),K=K,N=N,bits=bits,block_size=bs)
  case(f'nb{bits}z','MatMulNBits',[f(2,3,K),B,sc,zp,None,f(N)],1,const=(1,2,3,5),K=K,N=N,bits=bits,block_size=bs)
for k,(bits,bs,M,N,nb) in enumerate([(4,32,1,33,4),(4,128,7,16,2),(4,16,13,20,5),(8,32,3,9,3),(8,64,1,40,2),(2,64,5,17,2),(2,128,1,16,3)]):
  for level in (0,4):
    z=u8(N,(nb*bits+7)//8) if k%2 else None
    case(f'nbl{level}_{bits}_{bs}','MatMulNBits',[f(M,nb*bs),u8(N,nb,bs*bits//8),np.abs(f(N,nb))*.1,z,None,f(N)],1,const=(1,2,3,5),K=nb*bs,N=N,bits=bits,block_size=bs,accuracy_level=level)
case('nbl4_rest','MatMulNBits',[f(3,72),u8(6,3,16),f(6,3)],1,const=(1,2),K=72,N=6,bits=4,block_size=32,accuracy_level=4)
case('nb4f','MatMulNBits',[f(3,40),u8(6,3,8),f(6,3),f(6,3)],1,const=(1,2,3),K=40,N=6,bits=4,block_size=16)
case('gbq','GatherBlockQuantized',[u8(7,16),np.array([[1,3],[6,0]],np.int64),f(7,2),u8(7,1)],1,const=(0,2,3),bits=4,block_size=16,quantize_axis=1)
case('gbq8','GatherBlockQuantized',[u8(7,32),np.array([1,3],np.int64),f(7,2)],1,const=(0,2),bits=8,block_size=16,quantize_axis=1)
B_,Sq,Hn,D=2,5,4,8; h=Hn*D
case('att','Attention',[f(B_,Sq,6),f(6,3*h),f(3*h)],1,num_heads=Hn)
case('attu','Attention',[f(B_,Sq,6),f(6,3*h),f(3*h)],1,num_heads=Hn,unidirectional=1)
m2=np.array([[1,1,1,0,0],[1,1,1,1,1]],np.int32)
case('attm','Attention',[f(B_,Sq,6),f(6,3*h),f(3*h),m2],1,num_heads=Hn)
case('attm1','Attention',[f(B_,Sq,6),f(6,3*h),f(3*h),np.array([3,5],np.int32)],1,num_heads=Hn)
case('attm2','Attention',[f(B_,Sq,6),f(6,3*h),f(3*h),np.array([4,5,1,0],np.int32)],1,num_heads=Hn)
case('attp','Attention',[f(B_,Sq,6),f(6,3*h),f(3*h),None,f(2,B_,Hn,3,D)],2,num_heads=Hn,unidirectional=1)
case('attb','Attention',[f(B_,Sq,6),f(6,3*h),f(3*h),None,None,f(1,Hn,Sq,Sq)],1,num_heads=Hn)
case('mha','MultiHeadAttention',[f(B_,Sq,h),f(B_,7,h),f(B_,7,h),f(3*h)],1,num_heads=Hn)
case('mham','MultiHeadAttention',[f(B_,Sq,h),f(B_,5,h),f(B_,5,h),None,m2,f(1,Hn,Sq,5)],1,num_heads=Hn)
case('mhap','MultiHeadAttention',[f(B_,Sq,h),f(B_,5,h),f(B_,5,h),None,None,None,f(B_,Hn,3,D),f(B_,Hn,3,D)],3,num_heads=Hn,unidirectional=1)
case('rot','RotaryEmbedding',[f(B_,Sq,h),np.tile(np.arange(Sq),(B_,1)).astype(np.int64)+1,f(10,D//2),f(10,D//2)],1)
case('rot4','RotaryEmbedding',[f(B_,Hn,Sq,D),np.array([2],np.int64),f(10,D//2),f(10,D//2)],1,interleaved=1)
case('rotp','RotaryEmbedding',[f(B_,Sq,h),np.array([2],np.int64),f(10,2),f(10,2)],1,num_heads=Hn,rotary_embedding_dim=4)
hk=2; kv=hk*D
D=16; h=Hn*D; kv=hk*D
def gqa(nm,S_,past,totals,mx=None,**k):
    tot=np.array(max(totals),np.int32); pk=pv=None
    if past: pk,pv=f(B_,hk,past,D),f(B_,hk,past,D)
    case(nm,'GroupQueryAttention',[f(B_,S_,h),f(B_,S_,kv),f(B_,S_,kv),pk,pv,np.array(totals,np.int32)-1,tot,*((f(32,D//2),f(32,D//2)) if k.get("do_rotary") else (None,None))],3,const=(6,),num_heads=Hn,kv_num_heads=hk,**k)
gqa('gqa',5,0,[5,5]); gqa('gqar',5,0,[5,5],do_rotary=1); gqa('gqad',1,6,[7,7],do_rotary=1); gqa('gqad2',1,6,[7,5],do_rotary=1)
gqa('gqaw',5,0,[5,5],local_window_size=2); gqa('gqas',5,0,[5,5],softcap=2.0,smooth_softmax=1); gqa('gqab',1,10,[7,5],do_rotary=1)
gqa('gqaf',5,0,[5,3],do_rotary=1); gqa('gqai',1,4,[5,5],do_rotary=1,rotary_interleaved=1); gqa('gqal',5,0,[5,3]); gqa('gqaw1',1,6,[7,7],local_window_size=3)
os.makedirs(root,exist_ok=True); json.dump(idx,open(root+'/index-1.json','w')); print(len(idx))
