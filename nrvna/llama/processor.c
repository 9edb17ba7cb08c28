/* What an x86 processor says of itself. Compiled for every one of them: it runs before anything that is not. */

#include <cpuid.h>
#include <stdint.h>

#define NRVNA_API __attribute__((visibility("default")))

/* EAX, EBX, ECX and EDX of a leaf; zeros where it has none. */
NRVNA_API void nrvna_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t registers[4])
{
    registers[0] = registers[1] = registers[2] = registers[3] = 0;
    if (__get_cpuid_max(leaf & 0x80000000u, 0) >= leaf)
        __cpuid_count(leaf, subleaf, registers[0], registers[1], registers[2], registers[3]);
}

/* The registers that the system keeps for each process, XCR0; 0 where it does not tell. */
NRVNA_API uint64_t nrvna_saved_state(void)
{
    uint32_t registers[4], low, high;
    nrvna_cpuid(1, 0, registers);
    if (!(registers[2] & bit_OSXSAVE))
        return 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return ((uint64_t)high << 32) | low;
}
