/* The floor below all floors: posix_spawn(3) and wait of one program from C. spawner PROGRAM COUNT AT_ONCE */
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>

extern char **environ;

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec + now.tv_nsec / 1e9;
}

int main(int argument_count, char **arguments) {
  char *words[] = {arguments[1], NULL};
  int count = atoi(arguments[2]), at_once = atoi(arguments[3]), status;
  double started = seconds();
  if (argument_count != 4)
    return 2;
  for (int number = 0; number < count + at_once; number++) {
    pid_t pid;
    if (number >= at_once && (wait(&status) < 0 || status))
      return 1;
    if (number < count && posix_spawn(&pid, words[0], NULL, NULL, words, environ))
      return 1;
  }
  printf("{\"per_second\": %f}\n", count / (seconds() - started));
  return 0;
}
