/* Printed by tools/fit_activations.py, which says how. Coefficients of 1, x, x^2, ... */
#ifndef ABN_CURVE_FITS_H
#define ABN_CURVE_FITS_H

#include "vector.h"

static const real silu_near_top[] = {
    /* relative error 3.2e-03 */
    (real)0x1.84c3f03b49ce7p+1,  (real)0x1.ff8890ddedb5dp+2, (real)0x1.eaf06fd71bbd0p+1,
    (real)-0x1.95e4f040d5110p-2, (real)0x1.0a80ccc268d5fp+0,
};
static const real silu_near_bottom[] = {
    /* the first is 1 */
    (real)0x1.a701c2f2fd55dp+1,
    (real)0x1.483694b74d492p+1,
    (real)-0x1.22da7be0b8c4ep-3,
    (real)0x1.0856f85049f60p-3,
};
static const real silu_tail_top[] = {
    /* relative error 4.4e-04 */
    (real)-0x1.d0c5656f7be7cp+0, (real)-0x1.8ddee096074e7p-3, (real)0x1.5699bc46794a5p+0,
    (real)0x1.e4f07c498cfa9p+0,  (real)0x1.7b3e08b4588d3p-2,
};
static const real silu_tail_bottom[] = {
    /* the first is 1 */
    (real)-0x1.de214cbdea3ccp+0,
    (real)-0x1.7b75486c0dfa8p-2,
};
#define SILU_LEAST_Z -0x1.1d25cf210482ep-2
#define SILU_TAIL_Z -0x1.1223a0e5e39b9p-5
#define SILU_LARGEST_S 4.503
#define SILU_LARGEST_Z 20
static const real silu_polynomials[][8] = {
    /* error 1.5e-07; first the centres */
    {(real)0x1.3eb6160000000p-2, (real)0x1.139eb80000000p-1, (real)0x1.94d84c0000000p-1, (real)0x1.0fc2f40000000p+0,
     (real)0x1.56ea4a0000000p+0, (real)0x1.9bc95e0000000p+0, (real)0x1.dba1220000000p+0, (real)0x1.0a668a0000000p+1},
    {(real)-0x1.c68c292ac5fefp+1, (real)-0x1.f411c27e958bap+0, (real)-0x1.76601af96b761p-1, (real)0x1.1c325f1fa1aefp-4,
     (real)0x1.138329a7372b5p-2, (real)0x1.1f6871eee872fp-4, (real)0x1.146779dcb9c3dp-9, (real)0x1.46fe2260ff236p-17},
    {(real)0x1.1931aa77ef029p+3, (real)0x1.71f3646ab0fcbp+2, (real)0x1.fac324c0be9adp+1, (real)0x1.e204da8ab0e06p+0,
     (real)-0x1.6a0f80f8c9727p-2, (real)-0x1.4ca83fad96e73p-1, (real)-0x1.4957742882964p-5,
     (real)-0x1.2ccd9e86ac3b7p-12},
    {(real)-0x1.66309c0552e40p+3, (real)-0x1.0ce5daec711acp+2, (real)-0x1.bdecbdd952cfap+1, (real)-0x1.0d5d1e9496f2ap+2,
     (real)-0x1.8cda3bb29ea2fp+1, (real)0x1.bc271e051681fp+0, (real)0x1.5aeb6a73e3980p-2, (real)0x1.044ff4bb52bccp-8},
    {(real)0x1.828c5411bf065p+4, (real)0x1.ab50c4fedaa98p+1, (real)-0x1.0b46b5882030fp-1, (real)-0x1.638ec0b5b2300p-1,
     (real)0x1.27d2ca4c00921p+2, (real)0x1.052f62e218fd1p+1, (real)-0x1.9975b027e4f06p+0, (real)-0x1.1799d8e0d29ccp-5},
    {(real)-0x1.e3e2e3c10da06p+5, (real)-0x1.e036fc2446dd8p+2, (real)-0x1.a792c695999afp+0, (real)0x1.9aacd9ad4d169p+0,
     (real)0x1.f5fd4f6b8b651p+2, (real)-0x1.04fca81e9a3efp+4, (real)0x1.0cb69d2199f40p+2, (real)0x1.9d5b9cc767108p-3},
    {(real)0x1.2aaf1a7546d54p+7, (real)0x1.4556d041d1789p+3, (real)0x1.1e5dd0c6c7f58p+1, (real)0x1.b5e02cf4ebd31p+1,
     (real)0x1.269ed3d0ad51cp-1, (real)0x1.d3a4f312c7259p+0, (real)-0x1.a6750cde81805p+1, (real)-0x1.b7dfe74ae0f65p-1},
    {(real)-0x1.9016e567bf9f1p+8, (real)-0x1.e1ed35cdee5ddp+3, (real)-0x1.d5bced977065cp-1, (real)0x1.24900b3204ecdp+1,
     (real)-0x1.3d0baf7c7536cp+4, (real)0x1.774c372f95fb0p+6, (real)-0x1.084fb0536d581p+4, (real)0x1.500d9e2e30a28p+1},
    {(real)0x1.6012628148215p+10, (real)0x1.af5b94c97777ap+4, (real)0x1.21847f23c1f43p+1, (real)0x1.52cfd2d637673p+0,
     (real)-0x1.32b2a6c059d23p+5, (real)-0x1.d1b7f0059e808p+3, (real)0x1.b6a0bea5c06ccp+5, (real)-0x1.4677cba286610p+2},
    {(real)-0x1.e03d5d31dab34p+11, (real)-0x1.677eb30910280p+5, (real)-0x1.6f4700afa0628p+0,
     (real)-0x1.8ceca54604d07p+0, (real)-0x1.0afae27a32297p+4, (real)-0x1.ca888e60c4a23p+8, (real)-0x1.1c43473e68a71p+5,
     (real)0x1.ee4a3fa3cc876p+1},
};
static const real silu_interval[] = {
    /* a cubic of v */
    (real)-0x1.8e5acc7650c23p+0,
    (real)0x1.625761003da5cp+2,
    (real)-0x1.abbfbb81f805ep+0,
    (real)0x1.e2ef7cbbff131p-2,
};
#define SILU_ZERO_S 0x1.0e2e5a6c46f34p-1
#define SILU_POLYNOMIALS_LEAST 0.04179
#define SILU_POLYNOMIALS_LARGEST_S 4.2519

static const real gelu_near_top[] = {
    /* relative error 2.5e-03 */
    (real)0x1.139f73b663bc4p+1,  (real)0x1.bbd3c83649084p+2, (real)0x1.8b6c7dde758d9p+1,
    (real)-0x1.1d35b5113f859p+1, (real)0x1.c40e0cfd2e507p+0,
};
static const real gelu_near_bottom[] = {
    /* the first is 1 */
    (real)0x1.ec82d3b2d5fb0p+1,
    (real)0x1.64e98cb0d2bf7p+1,
    (real)-0x1.6fdeea93291ecp+0,
    (real)0x1.13d18ccefe9d0p-1,
};
static const real gelu_tail_top[] = {
    /* relative error 1.3e-05 */
    (real)0x1.5b0037ed54da4p-4, (real)-0x1.3b71d58fc13f8p+1,  (real)-0x1.3ec5a19eca8f5p-2,
    (real)0x1.2712164a72da7p+1, (real)-0x1.7a3e2f6d40720p-22,
};
static const real gelu_tail_bottom[] = {
    /* the first is 1 */
    (real)0x1.c1cfc90bf217fp-3,
    (real)-0x1.a149cfd62b856p+0,
};
#define GELU_LEAST_Z -0x1.5c19dd4b1a3fbp-3
#define GELU_TAIL_Z -0x1.2034dfd0cbfa5p-9
#define GELU_LARGEST_S 2.484
#define GELU_LARGEST_Z 6
static const real gelu_polynomials[][8] = {
    /* error 3.7e-07; first the centres */
    {(real)0x1.3b081e0000000p-3, (real)0x1.358b080000000p-2, (real)0x1.2062ac0000000p-1, (real)0x1.e342920000000p-1,
     (real)0x1.4146ea0000000p+0, (real)0x1.6c12a60000000p+0, (real)0x1.89da920000000p+0, (real)0x1.a152820000000p+0},
    {(real)-0x1.32d695347dd19p+1, (real)-0x1.b61b5f4b84449p+0, (real)-0x1.9eea6850e8e1cp-1, (real)0x1.96efa17859bbdp-5,
     (real)0x1.ffdeb9cd3fddfp-4, (real)0x1.24fc01b852737p-6, (real)0x1.f384abcdad8bap-12, (real)0x1.6b54c31c18670p-19},
    {(real)0x1.697f5da9d8a22p+2, (real)0x1.fc6000982c9b5p+1, (real)0x1.839b01117edc8p+1, (real)0x1.4635dc3e0d5ffp+0,
     (real)-0x1.4f320cb3a032ep-1, (real)-0x1.7bb6a4132be39p-2, (real)-0x1.53528942a8cd5p-6,
     (real)-0x1.939efc67e2d1fp-13},
    {(real)-0x1.6798921cbb87cp+3, (real)-0x1.6a46eb385524fp+1, (real)-0x1.93140fc270af3p+0, (real)-0x1.98e37332395c1p+1,
     (real)-0x1.8f0137a32e402p+0, (real)0x1.4246f169715a1p+1, (real)0x1.90c35a938b0fcp-2, (real)0x1.a02b1b3f557fap-8},
    {(real)0x1.882285f95d3f2p+5, (real)0x1.85f8b479b22bdp+2, (real)-0x1.38adc7c0e3118p-1, (real)-0x1.66de33593122cp+0,
     (real)0x1.09a9650ab1661p+3, (real)-0x1.64c7dd630fa7ap+0, (real)-0x1.031abb8b97cd9p+2, (real)-0x1.05d7cc9b91198p-3},
    {(real)-0x1.d05d78f78b4acp+7, (real)-0x1.1aec047c92a30p+4, (real)-0x1.13b998b040b72p+1, (real)0x1.7c11069a6d506p+0,
     (real)0x1.f96d9ab1d5382p+3, (real)-0x1.90cfda81d2970p+5, (real)0x1.66404aaee288cp+4, (real)0x1.bb66aa7590ad8p+0},
    {(real)0x1.1a8cded86c3cep+10, (real)0x1.5681a2f49025ap+5, (real)0x1.2d92625f8884fp+1, (real)0x1.d371ddc8bfd88p+1,
     (real)-0x1.b37f18cf5701ep+2, (real)0x1.e6ce2dc228922p+5, (real)-0x1.ed577448544d5p+4, (real)-0x1.0535a8ec4a43ap+4},
    {(real)-0x1.7fde673bb68c9p+12, (real)-0x1.cd220d60c8f21p+6, (real)-0x1.511a4a7668e86p+1, (real)0x1.1259502f4015ap+2,
     (real)-0x1.05004549092bap+7, (real)0x1.e0d48bfa360fap+9, (real)-0x1.90b42fb784c79p+8, (real)0x1.9e4fd425c0229p+6},
    {(real)0x1.6776e62c2fc49p+15, (real)0x1.7d4bee4a97143p+8, (real)0x1.69cfa11ef492bp+2, (real)0x1.5a62847b54acap+2,
     (real)-0x1.88502ffc0088fp+8, (real)-0x1.f1665df52c2b3p+8, (real)0x1.fcd70869e01b2p+10,
     (real)-0x1.52c1c0dc589f1p+8},
    {(real)-0x1.d1f9bdaf725ecp+17, (real)-0x1.09e08e346bee2p+10, (real)-0x1.143294108679ap+3,
     (real)0x1.f7b9658b7085fp+1, (real)-0x1.4e80cc2e1977cp+8, (real)-0x1.f6cc58fe103a6p+13, (real)0x1.5c84e3e1fcc31p+10,
     (real)-0x1.b9034c4a46bc7p+7},
};
static const real gelu_interval[] = {
    /* a cubic of v */
    (real)-0x1.77c6a20d38451p+0,
    (real)0x1.70a193bbc3535p+3,
    (real)-0x1.7f1d57f28c7aap+3,
    (real)0x1.3d505ecc78a95p+2,
};
#define GELU_ZERO_S 0x1.a62b963142adep-2
#define GELU_POLYNOMIALS_LEAST 0.00877
#define GELU_POLYNOMIALS_LARGEST_S 2.3812

static const real gelu_tanh_near_top[] = {
    /* relative error 2.7e-03 */
    (real)0x1.14085532d20fcp+1,  (real)0x1.c0c7679fb94fcp+2, (real)0x1.a0483fc2d424bp+1,
    (real)-0x1.184f49c48c7e9p+1, (real)0x1.d0500a7bca255p+0,
};
static const real gelu_tanh_near_bottom[] = {
    /* the first is 1 */
    (real)0x1.f07b6886facc8p+1,
    (real)0x1.71f7c6fa3b910p+1,
    (real)-0x1.5f649e0a0eb4dp+0,
    (real)0x1.0ec1d2bf2b85dp-1,
};
static const real gelu_tanh_tail_top[] = {
    /* relative error 1.7e-03 */
    (real)0x1.3f165c81a7efdp+1,  (real)-0x1.50fee8b171d49p+1, (real)-0x1.8c4429136ef47p-1,
    (real)-0x1.01712417c8f87p-6, (real)0x1.2dfaa7b448109p-15,
};
static const real gelu_tanh_tail_bottom[] = {
    /* the first is 1 */
    (real)0x1.554a798ac504ap-1,
    (real)0x1.0f7c2018f8398p-5,
};
#define GELU_TANH_LEAST_Z -0x1.5c3e533586d1ap-3
#define GELU_TANH_TAIL_Z -0x1.ea1864ea62ea0p-10
#define GELU_TANH_LARGEST_S 2.484
#define GELU_TANH_LARGEST_Z 6
static const real gelu_tanh_polynomials[][8] = {
    /* error 1.7e-07; first the centres */
    {(real)0x1.343b9c0000000p-3, (real)0x1.31ab420000000p-2, (real)0x1.1da0ae0000000p-1, (real)0x1.dfcc3e0000000p-1,
     (real)0x1.3f42380000000p+0, (real)0x1.69d5860000000p+0, (real)0x1.8795d40000000p+0, (real)0x1.9eefbe0000000p+0},
    {(real)-0x1.34070405a2829p+1, (real)-0x1.ba185b9c9a071p+0, (real)-0x1.a7e0468f1fea7p-1, (real)0x1.4e3d4d6bd9e5bp-5,
     (real)0x1.0ac54a8ba8fb5p-3, (real)0x1.57a12b163968fp-6, (real)0x1.0dd69d9de9d76p-11, (real)0x1.54a0aa082df1ep-20},
    {(real)0x1.6477ddc67f122p+2, (real)0x1.fc63127931b59p+1, (real)0x1.8654e95fa9a55p+1, (real)0x1.5171a27ef5925p+0,
     (real)-0x1.41772ace17926p-1, (real)-0x1.ae34192ecfc23p-2, (real)-0x1.8d5427d5e4664p-6,
     (real)-0x1.d8b032e61faaap-14},
    {(real)-0x1.55c7a8817c2a8p+3, (real)-0x1.5ebcc7538a756p+1, (real)-0x1.902b58fbe11dap+0, (real)-0x1.9576e55df42d9p+1,
     (real)-0x1.c38163ca56edfp+0, (real)0x1.4997859a08c2bp+1, (real)0x1.f1c3663488109p-2, (real)0x1.2e792355593f7p-8},
    {(real)0x1.7469272ffc469p+5, (real)0x1.714b294f1cf4cp+2, (real)-0x1.3660f930b87b5p-1, (real)-0x1.6d9808b1efe12p+0,
     (real)0x1.ec74cbc6fd27ap+2, (real)0x1.b918b6b96b6b8p-1, (real)-0x1.49436abc97c6ep+2, (real)-0x1.d4a91cd1db0b3p-4},
    {(real)-0x1.bd0aa58ab1eacp+7, (real)-0x1.0ca09aeda93c0p+4, (real)-0x1.0d64cbb5ef289p+1, (real)0x1.5efa395e86458p+0,
     (real)0x1.f6e96c1dfa9a6p+3, (real)-0x1.a7b07e0417891p+5, (real)0x1.a98aed0453bb4p+4, (real)0x1.e43650fe8db73p+0},
    {(real)0x1.11a45e5bead93p+10, (real)0x1.4560a560b331bp+5, (real)0x1.208d63d363607p+1, (real)0x1.bc0d09f93e575p+1,
     (real)-0x1.f1dc9d228547bp-4, (real)-0x1.afb7c6dc0eee1p+3, (real)-0x1.0fb1c6e1a4748p+1,
     (real)-0x1.58751d77f099ap+4},
    {(real)-0x1.79a7a05ff68dap+12, (real)-0x1.b8779a3e2c745p+6, (real)-0x1.41b5766004794p+1, (real)0x1.fe949c4868d67p+1,
     (real)-0x1.86f4cb3d70b07p+6, (real)0x1.d1262898e9a8cp+9, (real)-0x1.6334bedf5adfap+9, (real)0x1.412c641df121ep+7},
    {(real)0x1.6b72ba666d150p+15, (real)0x1.6f5aa803479f8p+8, (real)0x1.5c92637091758p+2, (real)0x1.3f34033e30b2dp+2,
     (real)-0x1.5bf77deee8832p+8, (real)0x1.30fb9960068a5p+10, (real)0x1.eff48b3c1da15p+10,
     (real)-0x1.13de4ad67b8ecp+9},
    {(real)-0x1.df78ef9a95952p+17, (real)-0x1.023f06a6de3e2p+10, (real)-0x1.0e538a471153bp+3,
     (real)0x1.e0fe4d7846b7ep+1, (real)-0x1.e8431ee2f28f1p+8, (real)-0x1.87849856dfb1bp+13, (real)0x1.3464c28652b56p+13,
     (real)-0x1.ee5acbf3a3a69p+9},
};
static const real gelu_tanh_interval[] = {
    /* a cubic of v */
    (real)-0x1.6f9ea988d09a0p+0,
    (real)0x1.6ffd3dfe7c485p+3,
    (real)-0x1.80e227c77b92fp+3,
    (real)0x1.412c337d30ef4p+2,
};
#define GELU_TANH_ZERO_S 0x1.a641b19c52d09p-2
#define GELU_TANH_POLYNOMIALS_LEAST 0.00819
#define GELU_TANH_POLYNOMIALS_LARGEST_S 2.3495

static const real mish_near_top[] = {
    /* relative error 3.1e-03 */
    (real)0x1.5f1a80090b0b2p+1,  (real)0x1.923ff72702d3fp+2, (real)0x1.0170ed18c310ap+1,
    (real)-0x1.be2392f58cc3fp-2, (real)0x1.247c53d44fe92p+0,
};
static const real mish_near_bottom[] = {
    /* the first is 1 */
    (real)0x1.7dc78e2771ccep+1,
    (real)0x1.e920d72177c00p+0,
    (real)-0x1.31d8ba3c3eebap-2,
    (real)0x1.b7b7148c8f93dp-3,
};
static const real mish_tail_top[] = {
    /* relative error 3.5e-04 */
    (real)-0x1.f93445b0fadd7p+1, (real)0x1.3771e9772e8bep+0, (real)0x1.8c8164feea870p+1,
    (real)0x1.d02df949b038cp+1,  (real)0x1.4618d06e8a7f7p-1,
};
static const real mish_tail_bottom[] = {
    /* the first is 1 */
    (real)-0x1.ca94ede45f51ap+1,
    (real)-0x1.4644fb0dd1d28p-1,
};
#define MISH_LEAST_Z -0x1.3c417299f9f85p-2
#define MISH_TAIL_Z -0x1.130e795f2916ep-5
#define MISH_LARGEST_S 3.363
#define MISH_LARGEST_Z 11
static const real mish_polynomials[][8] = {
    /* error 1.7e-07; first the centres */
    {(real)0x1.53d6f60000000p-2, (real)0x1.388f8c0000000p-1, (real)0x1.e4db460000000p-1, (real)0x1.40829a0000000p+0,
     (real)0x1.79ca9c0000000p+0, (real)0x1.a4b5fa0000000p+0, (real)0x1.c70a580000000p+0, (real)0x1.e3aae60000000p+0},
    {(real)-0x1.a73d514ca112bp+1, (real)-0x1.80c39f56cd749p+0, (real)-0x1.be643240ba715p-3, (real)0x1.1e533cfd57dc4p-3,
     (real)0x1.1ebae230a91c8p-5, (real)0x1.984545c16d46ap-10, (real)0x1.0352d8dec2788p-15, (real)0x1.c29830eeb9ef1p-22},
    {(real)0x1.0b6d51f468dd0p+3, (real)0x1.469f9a71a837fp+2, (real)0x1.3f179fe63c39ep+1, (real)-0x1.5144becbef136p-4,
     (real)-0x1.c6ab455c77673p-2, (real)-0x1.38262c3f27203p-5, (real)-0x1.146324c025a3fp-10,
     (real)-0x1.2e6330a4c012cp-16},
    {(real)-0x1.3f71036214e10p+3, (real)-0x1.f92f7b1269881p+1, (real)-0x1.0d46d1ef0095cp+2, (real)-0x1.ae103124b90bcp+1,
     (real)0x1.a0ddd1419f590p+0, (real)0x1.a57135e47117ep-2, (real)0x1.139034ac13bd7p-6, (real)0x1.837e2782c2012p-12},
    {(real)0x1.3950a3055e771p+4, (real)0x1.7d1b70498622bp+0, (real)-0x1.e276382711ff7p-1, (real)0x1.4628779e1579ep+2,
     (real)0x1.4cb6ded5e5881p+1, (real)-0x1.3bdebc6a9ec54p+1, (real)-0x1.5236da2cbea8fp-3, (real)-0x1.3a45aa8e8f85ap-8},
    {(real)-0x1.7855ff443bf54p+5, (real)-0x1.2c0549f2f5e28p+2, (real)0x1.edf7f1e4891c9p-2, (real)0x1.6d68ac4e5582ap+3,
     (real)-0x1.c491edfd00de3p+4, (real)0x1.f790465da7c49p+2, (real)0x1.19bab79c6ad8dp+0, (real)0x1.6820e4a3aed03p-5},
    {(real)0x1.b19479d68b85cp+6, (real)0x1.696f435d7c84cp+2, (real)0x1.99bef6b9174c6p+1, (real)0x1.a62f0972b6794p+2,
     (real)0x1.decc702ad9a15p-1, (real)-0x1.9e8d1b0d7a684p+1, (real)-0x1.48967ca1e1712p+2, (real)-0x1.332f516e16ab6p-2},
    {(real)-0x1.10c0e3848f42fp+8, (real)-0x1.b5389524894d8p+2, (real)0x1.3963e5160d9d8p+1, (real)-0x1.d6fa090edb15ap+4,
     (real)0x1.30d9418967e23p+8, (real)-0x1.4d9fc26e051c4p+6, (real)0x1.02574ea7d10c4p+4, (real)0x1.922abdadddcf8p+0},
    {(real)0x1.c67213704c8bbp+9, (real)0x1.7c7e293119fabp+3, (real)0x1.c6ead9ed7f064p+1, (real)-0x1.c470a799afd6dp+6,
     (real)0x1.3d36f6164c6b5p+4, (real)0x1.2a49e48aa2612p+8, (real)-0x1.844ea4e4b8e57p+4, (real)-0x1.a437f98a3033dp+2},
    {(real)-0x1.20855faf914f7p+11, (real)-0x1.1d272bfd78e6bp+4, (real)0x1.a3bbc0967b7b5p+0, (real)-0x1.3d42bd2eab286p+7,
     (real)-0x1.5e9ead0e7fff3p+11, (real)-0x1.113bc76f3fdbep+6, (real)-0x1.16efcb637da61p+5,
     (real)0x1.33a6ef4344a6fp+4},
};
static const real mish_interval[] = {
    /* a cubic of v */
    (real)-0x1.c6ee8015fd548p+0,
    (real)0x1.bdce99bb7daf5p+2,
    (real)-0x1.4748a41d6c0bdp+2,
    (real)0x1.06d3ea4823c5ap+1,
};
#define MISH_ZERO_S 0x1.1c8989557f73fp-1
#define MISH_POLYNOMIALS_LEAST 0.04669
#define MISH_POLYNOMIALS_LARGEST_S 3.2107

#define NORMAL_TAIL_CENTRE 4
#ifdef ABN_DTYPE_FLOAT64
static const real normal_tail[] = {
    /* relative error 4.4e-17 */
    (real)0x1.82b4bb8c94dcep-1,   (real)-0x1.373e3a893c287p-1,  (real)0x1.8c6dbf2cfc2fdp-2,
    (real)-0x1.7dff2bff6889ap-3,  (real)0x1.eec4cc3e4560cp-5,   (real)-0x1.ee2761034c407p-8,
    (real)-0x1.c81719cabcedep-9,  (real)0x1.ab825f7e9996dp-10,  (real)0x1.17a4a6b9505f7p-13,
    (real)-0x1.e4a415fb8cca5p-13, (real)-0x1.0011cb7c88079p-19, (real)0x1.26cf8dea72ab1p-15,
    (real)0x1.7fdd9eeeb883fp-21,  (real)-0x1.8d35cd874dc01p-18, (real)-0x1.4f9d808db1d2fp-21,
    (real)0x1.11c074ae9e33fp-20,  (real)0x1.1b207d62865e8p-22,  (real)-0x1.4b471811b0210p-23,
    (real)-0x1.480d99ae63529p-24, (real)0x1.f4eaa9c85bbb0p-27,  (real)0x1.de6d02a26289cp-27,
    (real)0x1.3fb7ce475a168p-34,  (real)-0x1.0959f1400a390p-30,
};
#else
static const real normal_tail[] = {
    /* relative error 1.9e-08 */
    (real)0x1.82b4bbd08095dp-1,  (real)-0x1.373e39bdbe208p-1,  (real)0x1.8c6d8f14ebcdbp-2,  (real)-0x1.7dff9afd343f0p-3,
    (real)0x1.eeda0211bbb92p-5,  (real)-0x1.ed6fdd887f605p-8,  (real)-0x1.ce2f1758818f9p-9, (real)0x1.9c2c777c075fbp-10,
    (real)0x1.a61391958e593p-13, (real)-0x1.f817049f40d4bp-14,
};
#endif

#endif
